# SPDX-License-Identifier: Apache-2.0
"""The contract of methods: a method checks itself, changes the model and names its callbacks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from hftune.core.cost import StepCost
from hftune.models.load import load_finetuned
from hftune.models.save import ModelMetadata
from hftune.tasks.context import RunContext


class Method(ABC):
    """Decides on the parameters that train.

    Attributes:
        state_is_whole: Whether :meth:`state` has all that trains, so that nothing else is read of a
            checkpoint.
    """

    state_is_whole = False

    @property
    def changes_what_trains(self) -> bool:
        """Whether weights begin or cease to train during the run."""
        return False

    def check(self, skeleton: PreTrainedModel, context: RunContext) -> nn.Module | None:
        """Try the method on a model without weights, so that misfits show before loading.

        Args:
            skeleton: The model on the meta device; it is changed.
            context: What the method may know of the run.

        Returns:
            The changed model, to count from; None where it takes weights to know.

        Raises:
            HftuneError: The method cannot work on this architecture.
        """
        return self.apply(skeleton, context)

    @abstractmethod
    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Return the model ready to train, with ``requires_grad`` set on its parameters."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return a term for the loss of each optimizer step, shape ``()``; None without one."""
        return None

    def rate_factor(self) -> Callable[[int], float] | None:
        """Return the factor of the scheduled rate by optimizer step; None without one."""
        return None

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return tensors for a checkpoint that Transformers and PEFT do not save by themselves.

        Args:
            model: Not wrapped.
        """
        return {}

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Put the tensors of :meth:`state` back; called only if there are any."""
        return None

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the model that is saved at the end of the run."""
        return model

    def step_cost(self, meta_model: nn.Module) -> StepCost:
        """Return the cost of the method in each step, beside the weights that train.

        Args:
            meta_model: What :meth:`check` returned.
        """
        return StepCost()

    def results(self, model: nn.Module, folder: Path | None) -> dict[str, object]:
        """Return figures for ``metrics.json`` after :meth:`finish`, and write files of its own.

        Args:
            model: As it is saved.
            folder: The run folder; None in a process that writes nothing.
        """
        return {}

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """Return the callbacks that the method needs during training."""
        return []

    @classmethod
    def load_saved(cls, folder: Path, metadata: ModelMetadata, auto_model: Any) -> Any:
        """Load the model of a run in evaluation mode, on the first accelerator or the CPU.

        Args:
            folder: The ``model/`` folder of the run.
            metadata: What the folder remembers.
            auto_model: The ``AutoModelFor...`` class of the task.

        Raises:
            HftuneError: A file is missing or damaged, or the base is another one.
        """
        from hftune.methods.peft_tuners import register_tuners

        register_tuners()
        return load_finetuned(folder, metadata, auto_model)

    @classmethod
    def loading_code(cls, metadata: ModelMetadata, place: str) -> list[str] | None:
        """Return lines for the model card that make ``model`` and ``tokenizer`` without hftune.

        Args:
            metadata: What the folder remembers.
            place: The folder or Hub id, quoted, perhaps with a revision.

        Returns:
            The lines; None if an ``Auto`` class of Transformers or PEFT loads the model.
        """
        return None

    @classmethod
    def logits_code(cls, metadata: ModelMetadata) -> str:
        """Return an expression for the logits of ``batch``, after the lines of the model card.

        Args:
            metadata: What the folder remembers.
        """
        return "model(**batch).logits.float().cpu()"
