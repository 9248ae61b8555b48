# SPDX-License-Identifier: Apache-2.0
"""How far down the backward pass goes."""

from typing import Any

from transformers import PreTrainedModel, TrainerCallback


class NoInputGradients(TrainerCallback):
    """Ends the backward pass at the lowest layer that trains, with recomputed activations, too.

    Transformers then has the embeddings' output ask for a gradient, for the sake of reentrant
    checkpointing, and every frozen layer below would be recomputed and gone through for nothing.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Undo what the Trainer switched on a moment ago."""
        recomputes = args.activation_checkpointing or args.gradient_checkpointing
        options = args.activation_checkpointing_kwargs or args.gradient_checkpointing_kwargs or {}
        if not recomputes or options.get("use_reentrant"):
            return
        for part in kwargs["model"].modules():
            if isinstance(part, PreTrainedModel):
                part.disable_input_require_grads()
