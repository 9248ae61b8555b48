# SPDX-License-Identifier: Apache-2.0
"""The recipe as an object: read from a file or built in Python, and saved as YAML."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from hftune.core.registry import Choice, Schema
from hftune.data.section import DataSection
from hftune.distillation.section import DistillationSection
from hftune.evaluation.section import EvaluationSection
from hftune.initialization.section import InitializationSection
from hftune.methods import method_row
from hftune.models.section import ModelSection
from hftune.recipe.compatibility import check_compatibility
from hftune.recipe.defaults import training_defaults, typed_sections
from hftune.recipe.json_schema import choice_names, recipe_schema
from hftune.recipe.validate import check
from hftune.recipe.yaml_source import Source, load_source
from hftune.regularization.section import RegularizationSection

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Fields of TrainingArguments that belong to one run on one machine, and not to its recipe.
NOT_REPEATED = ("output_dir", "run_name", "log_level", "log_level_replica")


@dataclasses.dataclass(frozen=True, init=False)
class Recipe:
    """The complete and checked recipe of one fine-tuning run.

    The constructor takes the keys of a YAML recipe; strings are short forms:

        Recipe(task="text-classification", model="demo:minilm", data="demo:docstrings",
               method={"name": "lora", "r": 8}, training={"num_train_epochs": 2})

    Raises:
        RecipeError: A key is unknown, a value has the wrong type or range, or two fields conflict.
    """

    task: str
    model: ModelSection
    data: DataSection
    method: Choice
    loss: Choice | None
    distillation: DistillationSection | None
    initialization: InitializationSection
    regularization: RegularizationSection
    evaluation: EvaluationSection
    training: dict[str, Any]
    origin: Path | None = dataclasses.field(default=None, compare=False)

    def __init__(self, **sections: object) -> None:
        self._fill(Source(tree=sections))

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> "Recipe":
        """Read a YAML recipe and lay dotted overrides (``method.r=16``) over it."""
        recipe = cls.__new__(cls)
        recipe._fill(load_source(Path(path), overrides), Path(path))
        return recipe

    def _fill(self, source: Source, origin: Path | None = None) -> None:
        check(source, recipe_schema())
        sections = typed_sections(source.tree)
        check_compatibility(sections, source)
        sections["training"] = training_defaults(sections)
        for name, value in {**sections, "origin": origin}.items():
            object.__setattr__(self, name, value)

    def replaced(self, **sections: object) -> "Recipe":
        """Return a copy with other sections, without a new check."""
        other = copy.copy(self)
        for name, value in sections.items():
            object.__setattr__(other, name, value)
        return other

    def value(self, key: str) -> Any:
        """Return the value under a dotted key such as ``data.label_names``; None where absent."""
        section, *below = key.split(".")
        value = getattr(self, section)
        for name in below:
            value = value.get(name) if isinstance(value, dict) else getattr(value, name)
        return value

    def to_yaml(
        self, loss: Choice | None = None, method: Choice | None = None, **in_force: object
    ) -> str:
        """Return the recipe as YAML with every default, ready to be run again.

        Args:
            loss: The loss that the task chose, if the recipe names none.
            method: The method with the options that it chose itself, if the recipe left some open.
            in_force: Fields of ``training`` that the launcher decided, such as ``bf16``.
        """
        schema = recipe_schema()["properties"]
        training = self._training_in_full(schema["training"], in_force)
        whole: dict[str, object] = {
            "task": self.task,
            "model": _section(self.model),
            "data": _section(self.data),
            "method": _spelled_out(method or self.method, schema["method"]),
        }
        if chosen_loss := self.loss or loss:
            whole["loss"] = _spelled_out(chosen_loss, schema["loss"])
        if self.distillation is not None:
            whole["distillation"] = _section(self.distillation)
        for name, section in (
            ("initialization", self.initialization),
            ("regularization", self.regularization),
            ("evaluation", self.evaluation),
        ):
            if given := _section(section):
                whole[name] = given
        whole["training"] = training
        text = StringIO()
        YAML(typ="rt").dump(CommentedMap(whole), text)
        return text.getvalue()

    def _training_in_full(self, schema: Schema, in_force: dict[str, object]) -> CommentedMap:
        """Return the fields of ``training``, followed by the other defaults that have an effect."""
        chosen: dict[str, Any] = {**self.training, **in_force}
        chosen = {key: value for key, value in chosen.items() if key not in NOT_REPEATED}
        rest = {k: v for k, v in _defaults(schema).items() if k not in NOT_REPEATED}
        if chosen.get("max_steps", -1) > 0:  # max_steps overrides num_train_epochs
            rest.pop("num_train_epochs", None)
        if self.data.token_budget is not None:
            rest.pop("per_device_train_batch_size", None)
        if method_row(self.method.name).fitted:
            rest = {}  # no Trainer would read them
        training = CommentedMap(chosen)
        for key in sorted(rest.keys() - chosen.keys()):
            training[key] = rest[key]
        if first := min(rest.keys() - chosen.keys(), default=None):
            training.yaml_set_comment_before_after_key(
                first, before="The defaults of transformers.TrainingArguments", indent=2
            )
        return training


def _section(section: "DataclassInstance") -> dict[str, object]:
    """Return a section as plain mappings, without the fields that are None."""
    tree = {
        key: _without_none(value) if dataclasses.is_dataclass(getattr(section, key)) else value
        for key, value in _without_none(dataclasses.asdict(section)).items()
    }
    return {
        key: [_without_none(item) if isinstance(item, dict) else item for item in value]
        if isinstance(value, list)
        else value
        for key, value in tree.items()
    }


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}


def _spelled_out(choice: Choice, schema: Schema) -> dict[str, object]:
    defaults = _defaults(choice_names(schema)[choice.name])
    return {"name": choice.name, **choice.options, **{
        key: value for key, value in defaults.items() if key not in choice.options}}  # fmt: skip


def _defaults(schema: Schema) -> dict[str, object]:
    properties = schema["properties"].items()
    return {key: item["default"] for key, item in properties if item.get("default") is not None}
