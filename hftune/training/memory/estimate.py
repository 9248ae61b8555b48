# SPDX-License-Identifier: Apache-2.0
"""How much memory a run will take, from the model's shapes and before any weight is loaded.

Weights, gradients and optimizer state are counted exactly. What is kept for the backward pass is
counted on a forward pass without weights; see :mod:`.activations`. Where a model does not run so,
it is estimated from the sizes of a transformer layer, as Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models", 2022, arXiv:2205.05198 count them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hftune.losses.chunked_head import chunk_size
from hftune.training.memory.activations import kept_bytes

FLOAT32, HALF = 4, 2
ADAM_BYTES = 8
#: What activations take under autocast, of those in float32: residuals, norms and rotary embeddings
#: stay as they are. Between quantized layers, which return what they get, nearly all do.
MIXED, MIXED_QUANTIZED = 0.65, 0.9
#: A chunk of logits, the same in float32, and their gradient.
LOGITS_AT_ONCE = 3


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes.

    Attributes:
        weights: All parameters in the type they are loaded in.
        gradients: Of the trained parameters.
        optimizer: Its state.
        activations: Kept for the backward pass, for one micro-batch.
        logits: Of a language model, with their gradient.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate_memory(
    model: Any,
    *,
    rows: int,
    length: int,
    bytes_per_weight: float = FLOAT32,
    mixed_precision: bool = False,
    state_bytes: float = ADAM_BYTES,
    recompute: bool = False,
    whole_logits: bool = False,
) -> MemoryEstimate:
    """Estimate one process's memory.

    Args:
        model: On the meta device, with the method applied: what needs a gradient trains.
        rows: Rows of a micro-batch.
        length: Tokens that a row takes of the layers.
        bytes_per_weight: Of a frozen weight, 4 for float32. Below 2 it is that of quantized linear
            layers, 0.5 for 4-bit, and all else is float32.
        mixed_precision: Whether autocast computes in half precision.
        state_bytes: What the optimizer and an average keep of each weight that trains.
        recompute: Whether activations are checkpointed.
        whole_logits: Whether a language model computes its logits at once, and not in chunks.
    """
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    small = _linear_weights(model) if bytes_per_weight < HALF else every - trained
    frozen = small * bytes_per_weight + (every - trained - small) * FLOAT32
    activations = _activations(model, rows, length, recompute)
    if mixed_precision:
        quantized = bytes_per_weight < HALF
        activations = round(activations * (MIXED_QUANTIZED if quantized else MIXED))
        activations += _copies_in_half(model, frozen_too=bytes_per_weight == FLOAT32)
    return MemoryEstimate(
        weights=round(frozen) + trained * FLOAT32,
        gradients=trained * FLOAT32,
        optimizer=round(trained * state_bytes),
        activations=activations,
        logits=_logits(model, rows * length, whole_logits),
    )


def _activations(model: Any, rows: int, length: int, recompute: bool) -> int:
    """Bytes in float32: counted, or 8 widths a token and 3 inner ones in each layer."""
    text = model.config.get_text_config()
    layers: int = text.num_hidden_layers * (2 if model.config.is_encoder_decoder else 1)
    kept = kept_bytes(model, rows, length, on_cpu=not torch.accelerator.is_available())
    if kept is None:
        inner = text.to_dict().get("intermediate_size") or 4 * text.hidden_size
        kept = FLOAT32 * rows * length * (8 * text.hidden_size + 3 * inner) * layers
    inputs: int = FLOAT32 * rows * length * text.hidden_size * layers
    return inputs + kept // layers if recompute else int(kept)  # and all of one layer


def _logits(model: Any, tokens: int, whole: bool) -> int:
    """Logits and what the loss makes of them; with a head that trains, its gradient once more."""
    head = model.get_output_embeddings()
    if head is None:
        return 0
    logits = tokens * int(model.config.get_text_config().vocab_size)
    chunk = chunk_size(on_cpu=not torch.accelerator.is_available())
    of_head: int = sum(p.numel() for p in head.parameters() if p.requires_grad)
    return FLOAT32 * (LOGITS_AT_ONCE * (logits if whole else min(logits, chunk)) + of_head)


def _copies_in_half(model: Any, *, frozen_too: bool) -> int:
    """Bytes of what autocast makes of linear layers' weights, and keeps for the backward pass."""
    return HALF * sum(
        weight.numel() for weight in _linear(model) if weight.requires_grad or frozen_too
    )


def _linear(model: Any) -> list[Tensor]:
    return [part.weight for part in model.modules() if isinstance(part, nn.Linear)]


def _linear_weights(model: Any) -> int:
    """Count the weights of frozen linear layers but for the head of a language model."""
    whole = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    if (head := model.get_output_embeddings()) is not None:
        whole.append(head)
    spared = {id(part.weight) for part in whole}
    return sum(p.numel() for p in _linear(model) if not p.requires_grad and id(p) not in spared)
