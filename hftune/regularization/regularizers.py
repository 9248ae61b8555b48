# SPDX-License-Identifier: Apache-2.0
"""Build the parts of ``regularization`` that act on a model while it trains."""

from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hftune.core.cost import StepCost
from hftune.core.errors import RecipeError
from hftune.regularization import REGULARIZATIONS, section
from hftune.regularization.attached import Attached
from hftune.regularization.batch_norm import FrozenBatchNorm
from hftune.regularization.drop_connect import DropConnect
from hftune.regularization.dropout import has_drop_path, set_dropout
from hftune.regularization.noise import GradientNoise, WeightNoise
from hftune.regularization.sharpness import SharpnessAware
from hftune.regularization.stochastic_depth import StochasticDepth


@dataclass(frozen=True)
class Regularization:
    """Dropout of every kind, noise, and sharpness-aware steps of one run.

    Attributes:
        chosen: The section of the recipe; penalties and averages of the weights are made elsewhere.
        seed: Of the run, which the noise follows.
    """

    chosen: section.RegularizationSection
    seed: int

    def set_dropout(self, config: PreTrainedConfig) -> None:
        """Set the dropout in the config that the model is made of.

        Args:
            config: Of the model; it is changed.

        Raises:
            HftuneError: The model has no such dropout.
        """
        wanted = _in_config(self.chosen)
        if not has_drop_path(config):
            wanted.pop("drop_path", None)
        set_dropout(config, wanted)

    def step_cost(self, model: nn.Module) -> StepCost:
        """Return the cost of regularization in each step.

        Args:
            model: As the method changes it; it may be without weights.
        """
        noise, sharpness = self.build_weight_noise(model), self.build_sharpness(model)
        active = [*self.callbacks(model), noise, sharpness]
        return sum((one.step_cost() for one in active if one is not None), StepCost())

    def check_model(self, model: nn.Module) -> None:
        """Refuse keys that have no effect on a model.

        Args:
            model: As the method changes it; it may be without weights.

        Raises:
            HftuneError: It has no such modules or parameters.
        """
        self.callbacks(model)
        self.build_weight_noise(model)

    def check_own_model(self, model: nn.Module) -> None:
        """Refuse keys that have no effect on a user's own model, or would come too late.

        Raises:
            RecipeError: Its dropout was decided when it was made.
        """
        late = _in_config(self.chosen)
        if late:
            raise RecipeError(
                [f"regularization.{key}: a model of one's own is taken as it is" for key in late],
                hint="set the dropout in its config before it is made",
            )
        self.check_model(model)

    def build_weight_noise(self, model: nn.Module) -> WeightNoise | None:
        """Return the weight noise of the recipe, if it asks for any."""
        given = self.chosen.weight_noise
        if not isinstance(given, section.WeightNoise):
            return None
        return WeightNoise(model, given.std, seed=self.seed, params=given.params)

    def build_sharpness(self, model: nn.Module) -> SharpnessAware | None:
        """Return sharpness-aware minimization, if the recipe asks for it."""
        given = self.chosen.sam
        if not isinstance(given, section.Sam):
            return None
        return SharpnessAware(model, given.rho, adaptive=given.adaptive)

    def callbacks(self, model: nn.Module) -> list[Attached | GradientNoise]:
        """Return the callbacks that drop, freeze and add noise while a model trains."""
        given, callbacks = self.chosen, list[Attached | GradientNoise]()
        if given.drop_path and not has_drop_path(cast(PreTrainedModel, model).config):
            callbacks.append(StochasticDepth(model, given.drop_path))
        if isinstance(drop := given.drop_connect, section.DropConnect):
            callbacks.append(DropConnect(model, drop.p, drop.modules))
        if given.freeze_batch_norm:
            callbacks.append(FrozenBatchNorm(model))
        if isinstance(noise := given.gradient_noise, section.GradientNoise):
            callbacks.append(GradientNoise(model, noise.eta, gamma=noise.gamma, seed=self.seed))
        return callbacks


def _in_config(given: section.RegularizationSection) -> dict[str, float]:
    """Keys that are set in the model's config, and their values."""
    return {
        key: value for key, value in given.given().items() if REGULARIZATIONS[key].config_fields
    }
