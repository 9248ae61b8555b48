# SPDX-License-Identifier: Apache-2.0
"""End the backward pass at the lowest trained layer, also with activation checkpointing."""

from typing import Any

from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class NoInputGradients(TrainerCallback):
    """Ends the backward pass at the lowest trained layer, also with activation checkpointing.

    For reentrant checkpointing, Transformers makes the output of the embeddings require a gradient.
    Without this callback every frozen layer would be recomputed and differentiated in vain.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Undo ``enable_input_require_grads`` of the Trainer, unless checkpointing is reentrant."""
        recomputes = args.activation_checkpointing or args.gradient_checkpointing
        options = args.activation_checkpointing_kwargs or args.gradient_checkpointing_kwargs or {}
        if not recomputes or (isinstance(options, dict) and options.get("use_reentrant")):
            return
        for part in kwargs["model"].modules():
            if isinstance(part, PreTrainedModel):
                part.disable_input_require_grads()
