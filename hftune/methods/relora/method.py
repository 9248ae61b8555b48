# SPDX-License-Identifier: Apache-2.0
"""ReLoRA: LoRA that is merged into the base again and again, so that the sum has a high rank.

Lialin et al., "ReLoRA: High-Rank Training Through Low-Rank Updates", 2023, arXiv:2307.05695. Every
``merge_every`` steps the product ``B A`` goes into the frozen weight, ``A`` is drawn anew and ``B``
set to zero, so the function stays what it was. Most of the optimizer's memory of the old factors is
dropped, since it would push the new ones back into the old subspace, and the rate warms up again.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.core.steps import resolve_steps
from hftune.methods.merging import merged_low_rank
from hftune.methods.peft import Peft
from hftune.tasks.context import RunContext

Reset = Literal["magnitude", "random", "zero"]
#: Options of LoRA that a merged and restarted adapter cannot keep.
CONTRADICTING = {
    "use_dora": "its magnitudes belong to one base weight",
    "lora_bias": "biases are not merged",
    "layer_replication": "replicated layers share one base weight",
    "arrow_config": "it routes between adapters that were trained before",
}
#: A drift above this share of the update is told to the user.
LARGE_DRIFT = 0.1


@dataclass(kw_only=True)
class Restarts:
    """When LoRA is merged and begins anew. Numbers below 1 are shares, as in Transformers.

    Args:
        merge_every: Optimizer steps between merges, or a share of the run.
        rewarm_steps: Steps after a merge in which the rate climbs back from zero to the schedule,
            or a share of the steps between merges.
        warm_start_steps: Steps at the start that train every weight, or a share of the run.
        reset_optimizer: Which entries of the optimizer's state survive a merge: the largest
            (``magnitude``), some by chance (``random``), or none (``zero``).
        reset_ratio: Share of the entries that is dropped; ``zero`` drops all.
    """

    merge_every: float = field(default=0.2, metadata={"help": "Optimizer steps between merges; "
                               "below 1, a share of the run."})  # fmt: skip
    rewarm_steps: float = field(default=0.1, metadata={"help": "Steps after a merge in which the "
                                "rate climbs back; below 1, a share of merge_every."})  # fmt: skip
    warm_start_steps: float = field(default=0, metadata={"help": "Steps at the start that train "
                                    "every weight; below 1, a share of the run."})  # fmt: skip
    reset_optimizer: Reset = field(default="magnitude", metadata={"help": "Which entries of the "
                                   "optimizer's state survive a merge."})  # fmt: skip
    reset_ratio: float = field(default=0.99, metadata={"help": "Share of the optimizer's state "
                               "that a merge drops."})  # fmt: skip


@dataclass(kw_only=True)
class ReLoraConfig(LoraConfig, Restarts):
    """Options of a recipe: LoRA's fields, and the steps between restarts."""


@dataclass(frozen=True)
class Cycles:
    """The steps of a run, counted in optimizer steps that are done.

    Attributes:
        total: Of the run.
        start: When LoRA begins to train.
        length: From merge to merge.
        rewarm: In which the rate climbs back.

    Example:
        >>> cycles = Cycles(total=12, start=0, length=4, rewarm=2)
        >>> [step for step in range(13) if cycles.merges_at(step)]
        [4, 8]
        >>> [cycles.rate_factor(step) for step in (3, 4, 5, 6)]
        [1.0, 0.0, 0.5, 1.0]
    """

    total: int
    start: int
    length: int
    rewarm: int

    @classmethod
    def of(cls, restarts: Restarts, total: int) -> "Cycles":
        """Turn shares into steps.

        Raises:
            HftuneError: The run ends before the first merge, or the rate never climbs back.
        """
        start = resolve_steps(restarts.warm_start_steps, total)
        length = resolve_steps(restarts.merge_every, total)
        rewarm = resolve_steps(restarts.rewarm_steps, length)
        if rewarm > length:
            raise HftuneError(
                f"method.rewarm_steps: {rewarm} steps are more than the {length} between merges"
            )
        cycles = cls(total, start, length, rewarm)
        if not cycles.merges_at(start + length):
            raise HftuneError(
                f"method.merge_every: the first merge would come after {start + length} steps, and "
                f"the run has {total}: too few are left after it",
                hint=f"merge_every: {max((total - start) // 4, 1)} gives about three merges",
            )
        return cycles

    def merges_at(self, step: int) -> bool:
        """Whether LoRA is merged when ``step`` steps are done.

        No cycle begins that would end before its rate has climbed back.
        """
        done, left = step - self.start, self.total - step
        return done > 0 and done % self.length == 0 and left >= max(self.rewarm, 1)

    def rate_factor(self, step: int) -> float:
        """Return the factor of the scheduled learning rate after ``step`` steps, in [0, 1]."""
        done = max(step - self.start, 0)
        begun = self.start + done // self.length * self.length
        while begun > self.start and not self.merges_at(begun):
            begun -= self.length
        if step < self.start or begun == 0 or self.rewarm == 0:
            return 1.0
        return min((step - begun) / self.rewarm, 1.0)


class ReLora(Peft):
    """LoRA with restarts; the saved model is whole.

    Args:
        options: Fields of :class:`ReLoraConfig`.
    """

    def __init__(self, **options: Any) -> None:
        own = {field.name for field in dataclasses.fields(Restarts)}
        super().__init__("lora", {key: v for key, v in options.items() if key not in own})
        self.name = "relora"
        self.restarts = Restarts(**{key: v for key, v in options.items() if key in own})
        self.cycles: Cycles | None = None

    @property
    def changes_what_trains(self) -> bool:
        """Whether a warm start trains other weights first."""
        return bool(self.restarts.warm_start_steps)

    def check(self, skeleton: PreTrainedModel, context: RunContext) -> nn.Module | None:
        """Refuse options whose update cannot be merged and begun anew; see :class:`Method`."""
        for option, why in CONTRADICTING.items():
            if self.options.get(option):
                raise HftuneError(f"method.{option}: it does not go with relora: {why}")
        if self.options.get("bias", "none") != "none":
            raise HftuneError("method.bias: it does not go with relora: biases are not merged")
        start = self.options.get("init_lora_weights", True)
        if start not in (True, "gaussian"):
            raise HftuneError(
                f"method.init_lora_weights: relora begins anew with B at zero, not with {start!r}"
            )
        self.cycles = Cycles.of(self.restarts, context.num_training_steps)
        adapted = super().check(skeleton, context)
        return adapted if adapted is None else self._all_that_trains(adapted)

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Wrap the model; with a warm start every weight is set to train."""
        self.cycles = Cycles.of(self.restarts, context.num_training_steps)
        return self._all_that_trains(super().apply(model, context))

    def _all_that_trains(self, adapted: nn.Module) -> nn.Module:
        """Set all to train that trains at some time, since the optimizer is made once."""
        assert self.cycles is not None
        self.low_rank = {name for name, p in adapted.named_parameters() if p.requires_grad}
        if self.cycles.start:
            for name, parameter in adapted.named_parameters():
                parameter.requires_grad_(name in self.low_rank or _is_whole(name))
        return adapted

    def rate_factor(self) -> Callable[[int], float]:
        """Return the climb of the rate after each merge."""
        assert self.cycles is not None
        return self.cycles.rate_factor

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """Return the callback that merges."""
        assert isinstance(model, PeftModel)
        return [Restart(model, self)]

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the base weights that differ from the checkpoint's; see :class:`Method`."""
        assert self.cycles is not None
        if self.cycles.start:
            return {n: p.detach() for n, p in model.named_parameters() if _is_whole(n)}
        return {
            f"{name}.{key}": value
            for name, layer in lora_layers(model)
            for key, value in layer.get_base_layer().state_dict().items()
        }

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Put the base weights back; see :class:`Method`."""
        assert self.cycles is not None
        if self.cycles.start:
            model.load_state_dict(state, strict=False)
            return
        for name, layer in lora_layers(model):
            own = {key[len(name) + 1 :]: value for key, value in state.items()
                   if key.startswith(f"{name}.")}  # fmt: skip
            _load_weights(layer.get_base_layer(), own)

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the whole model, the last LoRA merged; a quantized base comes back as floats."""
        assert isinstance(model, PeftModel)
        return merged_low_rank(model)


class Restart(TrainerCallback):
    """Merges and begins anew at the steps that are due.

    Args:
        model: With LoRA.
        method: Knows when.
    """

    def __init__(self, model: PeftModel, method: ReLora) -> None:
        assert method.cycles is not None
        self.model, self.cycles = model, method.cycles
        self.restarts, self.low_rank = method.restarts, method.low_rank
        self.drift: float | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Switch on the parameters that train in the phase of the run."""
        if self.cycles.start:
            self._train_whole(state.global_step < self.cycles.start)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the warm start, or merge, if it is time."""
        step, optimizer = state.global_step, kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # out of Accelerate's wrapper
        if 0 < step == self.cycles.start:
            self._train_whole(False)
            for name, parameter in self.model.named_parameters():
                if name not in self.low_rank:
                    optimizer.state.pop(parameter, None)
            say(f"step {step}: every weight has trained; LoRA begins")
        elif self.cycles.merges_at(step):
            # The same draw on every process, and after a resume.
            seed = (args.seed << 32) + step
            self.drift = restart(self.model, seed)
            chance = torch.Generator().manual_seed(seed)
            for name, parameter in self.model.named_parameters():
                if "lora_" in name:
                    reset_state(optimizer.state[parameter], parameter, self.restarts, chance)
            if self.drift > LARGE_DRIFT:
                warn(
                    f"step {step}: rounding to the base's type changed the merged update by "
                    f"{self.drift:.0%} of its size"
                )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the drift of the latest merge to the log."""
        if self.drift is not None:
            kwargs["logs"]["merge_drift"] = self.drift
            self.drift = None

    def _train_whole(self, whole: bool) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(_is_whole(name) if whole else name in self.low_rank)


def restart(model: nn.Module, seed: int) -> float:
    """Merge every LoRA layer into its base and begin anew: A drawn, B zero.

    Args:
        model: With one active LoRA adapter.
        seed: Of the draw; the global generators stay where they are.

    Returns:
        The largest ``||W' - (W + BA)|| / ||BA||`` of a layer: rounding in the base's type.
    """
    drift = 0.0
    layers = list(lora_layers(model))
    device = _weight(layers[0][1]).device
    with torch.no_grad(), _seeded(seed, device):
        for _, layer in layers:
            name = layer.active_adapters[0]
            delta = layer.get_delta_weight(name).float()
            due = _weight(layer).float() + delta
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Merge lora module to 4-bit")  # drift is measured
                layer.merge()
            layer.merged_adapters.clear()
            change = delta.norm().item()
            if change > 0:
                drift = max(drift, (_weight(layer).float() - due).norm().item() / change)
            layer.reset_lora_parameters(name, True)
    return drift


def reset_state(
    state: dict[str, object], parameter: Tensor, restarts: Restarts, chance: torch.Generator
) -> None:
    """Drop most of an optimizer's state of a parameter, in place.

    The same entries stay in all averages: Adam's first without the second would be a step many
    times too long. Its count of steps begins anew for the same reason, since it corrects averages
    that start at zero.

    Args:
        state: Of the parameter; tensors of its shape are averages, and the first says which
            entries are large.
        parameter: Whose state it is.
        restarts: Which entries survive, and which share is dropped, rounded down to an entry.
        chance: Draws them if chance decides.

    Example:
        >>> average = torch.tensor([1.0, 4.0, 2.0, 3.0])
        >>> kept = Restarts(reset_ratio=0.5)
        >>> reset_state({"exp_avg": average}, torch.zeros(4), kept, torch.Generator())
        >>> average.tolist()
        [0.0, 4.0, 0.0, 3.0]
    """
    how = restarts.reset_optimizer
    averages = [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
    if not averages:
        return
    dropped = math.floor((1.0 if how == "zero" else restarts.reset_ratio) * parameter.numel())
    if how == "random":
        order = torch.randperm(parameter.numel(), generator=chance)
    else:
        order = averages[0].abs().flatten().argsort(stable=True)
    for average in averages:
        average.view(-1)[order[:dropped].to(average.device)] = 0
    if isinstance(step := state.get("step"), Tensor):
        step.zero_()


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the name and the layer of each module that has LoRA."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _is_whole(name: str) -> bool:
    """Whether a parameter belongs to the model that a warm start trains."""
    return "lora_" not in name and ".original_module." not in name


def _weight(layer: LoraLayer) -> Tensor:
    """Return the base weight of a LoRA layer as floats."""
    return dequantize_module_weight(layer.get_base_layer())


def _load_weights(layer: Any, state: dict[str, Tensor]) -> None:
    """Put a layer's weights back, 4-bit ones with the numbers that they were rounded by."""
    if type(layer.weight).__name__ != "Params4bit":
        layer.load_state_dict(state)
        return
    from bitsandbytes.nn.modules import Params4bit

    statistics = {key: value for key, value in state.items() if key.startswith("weight.")}
    layer.weight = Params4bit.from_prequantized(
        state["weight"], statistics, requires_grad=False, device=layer.weight.device, module=layer
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed of one's own on a device, and put its generator back."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type):
        torch.manual_seed(seed)
        yield
