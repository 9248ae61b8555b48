# SPDX-License-Identifier: Apache-2.0
"""AdaLoRA: low-rank updates share a budget of ranks; it falls and moves between layers.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023,
arXiv:2303.10512. The update of each matrix is ``P E Q`` with a diagonal ``E``. PEFT scores every
triplet of a column, an entry and a row, and sets the entries of the least important to zero. This
module makes the calls that no trainer makes, and keeps the state that a checkpoint would lose.
"""

from typing import Any

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.core.errors import HftuneError
from hftune.methods.peft import Peft
from hftune.tasks.context import RunContext

ORTHOGONALITY_WEIGHT = AdaLoraConfig.orth_reg_weight
#: Our word for a part of the state -> the dictionary of PEFT's allocator that it is kept in.
AVERAGES = {"average": "exp_avg_ipt", "uncertainty": "exp_avg_unc"}
RANKS = "ranks"


def phases(options: dict[str, Any], total: int) -> dict[str, int]:
    """Return ``tinit``, ``tfinal`` and ``total_step`` in steps.

    Args:
        options: Of the recipe; numbers below 1 are shares of the run, rounded down.
        total: Optimizer steps of the run.

    Raises:
        HftuneError: No step is left in which the budget could fall, or none before it.

    Example:
        >>> phases({"tinit": 0.1, "tfinal": 0.5}, 25)
        {'tinit': 2, 'tfinal': 12, 'total_step': 25}
    """
    given = {name: options.get(name, 0) for name in ("tinit", "tfinal")}
    steps = {
        name: int(value * total) if 0 < value < 1 else int(value) for name, value in given.items()
    }
    if total - steps["tfinal"] <= max(steps["tinit"], 1):  # the scores take a step, too
        raise HftuneError(
            f"method.tinit, method.tfinal: {steps['tinit']} steps before the budget falls and "
            f"{steps['tfinal']} after it leave too few of the {total} of the run",
            hint="numbers below 1 are shares of the run: tinit: 0.1, tfinal: 0.5",
        )
    return {**steps, "total_step": total}


class AdaLora(Peft):
    """AdaLoRA with its budget kept in the run's steps, and through a resume.

    Args:
        name: The PEFT type.
        options: Fields of ``peft.AdaLoraConfig``; shares too, for ``tinit`` and ``tfinal``.

    Attributes:
        ranks: Name of each ``E`` to which of its entries are left; None before the first cut.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__(name, options)
        self.ranks: dict[str, list[bool]] | None = None

    def config(self, context: RunContext, **overrides: object) -> PeftConfig:
        """Build the PEFT config with the phases in steps; see :class:`Peft`."""
        steps = phases(self.options, context.num_training_steps)
        return super().config(context, **overrides, **steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return the pull towards orthogonal P and Q, equation 4 of the paper.

        PEFT adds it to a loss that the model computes itself, which hftune never asks for.
        """
        weight = self.options.get("orth_reg_weight", ORTHOGONALITY_WEIGHT)
        if weight == 0:
            return None
        terms = []
        for name, matrix in model.named_parameters():
            if ("lora_A" in name or "lora_B" in name) and matrix.numel():
                product = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
                terms.append(torch.norm(product - torch.eye(len(product)).to(product), p="fro"))
        penalty: Tensor = weight * torch.stack(terms).mean()
        return penalty

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the averages of the scores and the ranks in force; see :class:`Method`."""
        allocator = _tuner(model).rankallocator
        state = {
            f"{part}.{name}": value
            for part, field in AVERAGES.items()
            for name, value in getattr(allocator, field).items()
        }
        ranks = {f"{RANKS}.{name}": torch.tensor(left) for name, left in (self.ranks or {}).items()}
        return {**state, **ranks}

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Put the averages and the ranks back; see :class:`Method`."""
        allocator = _tuner(model).rankallocator
        devices = {name: p.device for name, p in _tuner(model).model.named_parameters()}
        allocator.reset_ipt()
        for key, value in state.items():
            part, _, name = key.partition(".")
            if part == RANKS:
                self.ranks = {**(self.ranks or {}), name: value.tolist()}
            else:
                getattr(allocator, AVERAGES[part])[name] = value.to(devices[name])
                allocator.ipt[name] = torch.zeros_like(value)  # PEFT begins anew without it

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """Return the callback that moves the budget."""
        assert isinstance(model, PeftModel)
        return [AllocateRanks(model, self)]


class AllocateRanks(TrainerCallback):
    """Moves the budget after each optimizer step, while gradients still exist.

    PEFT cuts the matrices of a state dict down to the ranks that its config names, and would find
    the shapes wrong on a resume; so the config learns the ranks at the end only.

    Args:
        model: With AdaLoRA.
        method: Keeps the ranks.
    """

    def __init__(self, model: PeftModel, method: AdaLora) -> None:
        self.tuner, self.method = _tuner(model), method
        self.config: Any = model.active_peft_config

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Update the scores and mask the triplets over the budget."""
        self.config.rank_pattern = self.method.ranks
        self.tuner.update_and_allocate(state.global_step + 1)  # steps that are done, this one too
        self.method.ranks, self.config.rank_pattern = self.config.rank_pattern, None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say the budget that is in force."""
        if "loss" in kwargs["logs"]:
            budget, _ = self.tuner.rankallocator.budget_schedule(state.global_step)
            kwargs["logs"]["rank_budget"] = budget

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Leave the ranks where PEFT looks; a run that was stopped early is cut to its budget."""
        allocator = self.tuner.rankallocator
        if state.global_step < self.config.total_step - self.config.tfinal:
            self.method.ranks = allocator.mask_to_budget(self.tuner.model, allocator.target_bgt)
        self.config.rank_pattern = self.method.ranks


def _tuner(model: nn.Module) -> Any:
    assert isinstance(model, PeftModel)
    return model.base_model
