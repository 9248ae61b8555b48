# SPDX-License-Identifier: Apache-2.0
"""Pruning: the least important weights are set to zero, and the rest learns to do without them.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
arXiv:1506.02626. Every weight trains but those that are masked; their gradients are masked before
they are added up, so neither clipping nor the optimizer's averages see them, and they are set to
zero again after each step. A weight that is gone does not come back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hftune.core.console import say
from hftune.methods.method import Method
from hftune.methods.prune.config import PruneConfig
from hftune.methods.prune.schedule import Sparsities
from hftune.methods.prune.units import (
    UnitLayer,
    check_loads,
    shrink,
    unit_layers,
    units_left,
)
from hftune.methods.prune.weights import (
    check_widths,
    drop_smallest,
    keep_two_of_four,
    prunable_weights,
)
from hftune.tasks.context import RunContext

MASK, SCORE = "mask.", "score."


class Prune(Method):
    """Full fine-tuning under masks; the saved model is plain and whole.

    Args:
        options: Fields of :class:`PruneConfig`.

    Attributes:
        masks: Parameter name to a mask that broadcasts to it, true where a weight stays; empty
            before the first pruning.
        scores: Name to what ``taylor`` has gathered since the pruning before.
    """

    def __init__(self, **options: Any) -> None:
        self.config = PruneConfig(**options)
        self.sparsities: Sparsities | None = None
        self.weights: dict[str, int] = {}
        self.units: list[UnitLayer] = []
        self.masks: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}
        self._pruned: dict[str, dict[str, int]] = {}

    def check(self, skeleton: PreTrainedModel, context: RunContext) -> nn.Module | None:
        """Refuse models that cannot be pruned so, and runs without pruning; see ``Method``."""
        model = self.apply(skeleton, context)
        if self.config.cuts:
            check_loads(skeleton, self.units, units_left(self.units, self.config.sparsity))
        return model

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Switch every gradient on; the first pruning comes as training begins."""
        self.sparsities = self.config.sparsities(context.num_training_steps)
        self.masks, self.scores = {}, {}
        if self.config.structure in ("ffn", "heads"):
            self.units = unit_layers(model, self.config.structure)
        else:
            left_out = self.config.exclude_modules or ()
            self.weights = prunable_weights(model, self.config.target_modules, left_out)
            if self.config.structure == "2:4":
                check_widths(model, self.weights)
        return model.requires_grad_(True)

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """Return the callback that prunes and keeps the masks; none for a model of one's own."""
        return [] if self.sparsities is None else [KeepPruned(model, self, self.sparsities)]

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return masks and gathered scores of importance; see :class:`Method`."""
        return {
            **{MASK + name: mask for name, mask in self.masks.items()},
            **{SCORE + name: score for name, score in self.scores.items()},
        }

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Put masks and scores back; see :class:`Method`."""
        self.masks, self.scores = (
            {
                name.removeprefix(kind): value.to(next(model.parameters()).device)
                for name, value in state.items()
                if name.startswith(kind)
            }
            for kind in (MASK, SCORE)
        )

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the model, its zeros exact; whole units are cut out."""
        self._pruned = {
            name: _counts(model, name, self.masks[name])
            for name, _ in model.named_parameters()
            if name in self.masks
        }
        if self.units and self.masks:
            assert isinstance(model, PreTrainedModel)
            shrink(model, self.units, self.masks)
        return model

    def results(self, model: nn.Module, folder: Path | None) -> dict[str, object]:
        """Return the sparsity; write it layer by layer, and draw it; see :class:`Method`."""
        from hftune.report.sparsity import sparsity_figures, write_sparsity

        if not self._pruned:
            return {}
        if folder is not None:
            write_sparsity(self._pruned, folder)
        return {**sparsity_figures(self._pruned, model)}

    @torch.no_grad()
    def prune(self, model: nn.Module, sparsity: float) -> None:
        """Mask the least important weights and set them to zero: the share ``sparsity`` of all."""
        if self.config.cuts:
            for layer in self.units:
                score = self.scores.get(layer.key)
                score = layer.norms(model) if score is None else score.clone()
                if layer.key in self.masks:  # what is gone comes first, and stays gone
                    gone = ~layer.by_unit(self.masks[layer.key].flatten(), 0)[:, 0]
                    score.masked_fill_(gone, -1)
                (keep,) = drop_smallest([score], round(sparsity * layer.count))
                self.masks |= dict(layer.masks(model, keep))
        else:
            self._prune_weights(model, sparsity)
        self.scores = {}
        self.clear_pruned(model)

    def _prune_weights(self, model: nn.Module, sparsity: float) -> None:
        scores = {name: self._score(model, name) for name in self.weights}
        if self.config.structure == "2:4":
            self.masks = {n: keep_two_of_four(s, self.weights[n]) for n, s in scores.items()}
        elif self.config.scope == "layer":
            self.masks = {
                n: drop_smallest([s], round(sparsity * s.numel()))[0] for n, s in scores.items()
            }
        else:
            number = round(sparsity * sum(score.numel() for score in scores.values()))
            kept = drop_smallest(list(scores.values()), number)
            self.masks = dict(zip(scores, kept, strict=True))

    def _score(self, model: nn.Module, name: str) -> Tensor:
        """Return the importance of each entry of a weight; below zero for entries that are gone."""
        score = self.scores.get(name)
        score = model.get_parameter(name).detach().abs() if score is None else score
        return score if name not in self.masks else score.masked_fill(~self.masks[name], -1)

    def gather_scores(self, model: nn.Module) -> None:
        """Add up the scores of this step, if importance depends on gradients."""
        if self.config.importance != "taylor":
            return
        found = {layer.key: layer.effects(model) for layer in self.units}
        for name in self.weights:
            weight = model.get_parameter(name)
            assert weight.grad is not None
            found[name] = (weight.detach().float() * weight.grad.float()).abs()
        for name, value in found.items():
            finite = value.nan_to_num(0.0, 0.0, 0.0)  # a step that overflows is not taken
            self.scores[name] = self.scores[name] + finite if name in self.scores else finite

    def clear_pruned(self, model: nn.Module) -> None:
        """Set masked weights to zero."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                model.get_parameter(name).masked_fill_(~mask, 0)


class KeepPruned(TrainerCallback):
    """Prunes at the steps that are due, and holds the masks at all others.

    Args:
        model: Not wrapped.
        method: Holds the masks.
        sparsities: Says when and how much.
    """

    def __init__(self, model: nn.Module, method: Prune, sparsities: Sparsities) -> None:
        self.model, self.method, self.sparsities = model, method, sparsities
        self.hooks: list[RemovableHandle] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Prune at once if the schedule begins so; go on with the masks of a resumed run."""
        if state.global_step == 0 and self.sparsities.prunes_at(0):
            self._prune(state, None)
        self._mask_gradients()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Look at the gradients."""
        if state.global_step < self.sparsities.end:
            self.method.gather_scores(self.model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set masked weights to zero again, or prune more."""
        if state.global_step > 0 and self.sparsities.prunes_at(state.global_step):
            optimizer = kwargs["optimizer"]
            self._prune(state, getattr(optimizer, "optimizer", optimizer))
            self._mask_gradients()
        else:
            self.method.clear_pruned(self.model)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the sparsity to the log."""
        if "loss" in kwargs["logs"]:
            kwargs["logs"]["sparsity"] = self.sparsities.reached(state.global_step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Take the hooks off."""
        self._unhook()

    def _prune(self, state: TrainerState, optimizer: torch.optim.Optimizer | None) -> None:
        sparsity = self.sparsities.at(state.global_step)
        self.method.prune(self.model, sparsity)
        say(f"step {state.global_step}: pruned to a sparsity of {sparsity:.3f}")
        if optimizer is not None:
            forget_pruned(self.model, self.method.masks, optimizer)
        if state.global_step == self.sparsities.end:
            # What was better before had more weights; the best model is one of the wanted sparsity.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def _mask_gradients(self) -> None:
        self._unhook()
        for name, mask in self.method.masks.items():
            parameter = self.model.get_parameter(name)
            self.hooks.append(
                parameter.register_hook(lambda grad, gone=~mask: grad.masked_fill(gone, 0))
            )

    def _unhook(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


def forget_pruned(
    model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Set the averages of masked weights in an optimizer to zero; quantized averages stay.

    Args:
        model: Not wrapped.
        masks: As :attr:`Prune.masks`.
        optimizer: Out of Accelerate's wrapper.
    """
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        for value in optimizer.state.get(parameter, {}).values():
            is_average = isinstance(value, Tensor) and value.shape == parameter.shape
            if is_average and value.is_floating_point():
                value.masked_fill_(~mask.to(value.device), 0)


def _counts(model: nn.Module, name: str, mask: Tensor) -> dict[str, int]:
    size = model.get_parameter(name).numel()
    return {"weights": size, "pruned": int((~mask).sum()) * (size // mask.numel())}
