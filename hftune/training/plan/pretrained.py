# SPDX-License-Identifier: Apache-2.0
"""Find the pretrained model of a run: its path, config and processor, without weights."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hftune.core.errors import RecipeError
from hftune.models.keep_layers import shallow_config
from hftune.models.load import load_config, pretrained_path
from hftune.models.meta_model import empty_model
from hftune.models.structure import num_positions
from hftune.recipe.recipe import Recipe
from hftune.tasks.processors import Processor
from hftune.tasks.task import Task
from hftune.training.plan.settings import Settings
from hftune.training.plan.token_budget import virtual_tokens


@dataclass(frozen=True)
class Pretrained:
    """The pretrained model of a run, without weights.

    Attributes:
        path: Hub id or folder of the base model.
        config: The model's config with the recipe's overrides; :meth:`configured` adds the labels.
        processor: The base model's tokenizer, image processor or feature extractor.
        full_config: The config of the model with all its layers, if the recipe keeps some of them.
        config_changes: Fields that the task set in the config; they must be set after each load.
        max_length: Largest number of tokens in a row; None for no limit.
    """

    path: str
    config: PreTrainedConfig
    processor: Processor
    full_config: PreTrainedConfig | None = None
    config_changes: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None

    def configured(self, settings: Settings, task: Task) -> "Pretrained":
        """Return the pretrained model with the config that training needs.

        Args:
            settings: The recipe may keep some layers, set dropout, and limit the length of rows.
            task: Sets its labels in the config.

        Raises:
            HftuneError: The model has no such layers, dropout or positions.
        """
        recipe, full = settings.recipe, None
        config = copy.deepcopy(self.config)
        changes = task.configure(config, self.processor)
        if recipe.model.keep_layers is not None:
            config, full = shallow_config(config, recipe.model.keep_layers), config
        limit = longest_row(recipe, task, config, self.processor)
        settings.regularization.set_dropout(config)
        return replace(
            self, config=config, full_config=full, config_changes=changes, max_length=limit
        )


def find_pretrained(settings: Settings, task: Task) -> Pretrained:
    """Find the pretrained model of a recipe, and load its config and processor.

    Args:
        settings: The recipe names the model.
        task: Loads the processor.

    Raises:
        HftuneError: There is no such model.
    """
    section = settings.recipe.model
    path = pretrained_path(section.path)
    if section.revision is not None and path != section.path:
        raise RecipeError(["model.revision: a demo model has none"])
    config = load_config(path, section.config, section.revision)
    return Pretrained(path, config, task.load_processor(path, section.revision))


def model_without_weights(
    settings: Settings, task: Task, config: PreTrainedConfig
) -> PreTrainedModel:
    """Return the model of a config on the meta device."""
    return empty_model(task.auto_model, config, settings.recipe.model.attention)


def longest_row(
    recipe: Recipe, task: Task, config: PreTrainedConfig, processor: Processor
) -> int | None:
    """Return the recipe's limit, or the limit of model and processor; None for rows of any length.

    Raises:
        RecipeError: The recipe asks for more positions than the model has.
    """
    positions = num_positions(config)
    if positions is not None:
        positions -= virtual_tokens(recipe)
    asked = recipe.data.max_length
    if asked is not None:
        if positions is not None and asked > positions:
            raise RecipeError(
                [f"data.max_length: {asked} is beyond the model's {positions} positions"]
            )
        return asked
    limits = [positions, task.processor_limit(processor)]
    return min((limit for limit in limits if limit is not None), default=None)
