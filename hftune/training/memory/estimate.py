# SPDX-License-Identifier: Apache-2.0
"""Estimate the memory of a run from the shapes of the model, before weights are loaded.

Weights, gradients and optimizer state are counted exactly. Activations are counted in a forward
pass without weights; see :mod:`.activations`. If a model does not run so, they are estimated from
the sizes of a transformer layer, as by Korthikanti et al., "Reducing Activation Recomputation in
Large Transformer Models", 2022, arXiv:2205.05198.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hftune.core.cost import StepCost
from hftune.losses.chunked_head import chunk_size
from hftune.training.memory.activations import kept_bytes

FLOAT32, HALF = 4, 2
#: Bytes of activations under autocast, as a share of those in float32: residuals, norms and rotary
#: embeddings stay float32. Between quantized layers nearly all activations do.
MIXED, MIXED_QUANTIZED = 0.65, 0.9
#: One pass with cross-entropy and AdamW.
PLAIN = StepCost(
    live_passes=1, forward_passes=1, logits="chunked", logit_copies=3, bytes_per_weight=8
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimate of the bytes that training takes.

    Attributes:
        weights: All parameters in the dtype of loading, and those of other models.
        gradients: Gradients of the trained parameters.
        optimizer: State of the optimizer, and all other copies of the trained parameters.
        activations: Activations of one micro-batch for the backward pass.
        logits: Logits of a language model, with their gradient.
        accumulates: Whether gradients exist together with activations, because a step has several
            micro-batches or processes. Otherwise the backward pass frees activations while it
            creates gradients.

    Example:
        >>> MemoryEstimate(weights=4, gradients=4, optimizer=8, activations=5, logits=1).total
        18
        >>> MemoryEstimate(4, 4, 8, 5, 1, accumulates=True).total
        22
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    accumulates: bool = False

    @property
    def total(self) -> int:
        """The largest number of bytes at one time."""
        passing = self.activations + self.logits
        if self.accumulates:
            return self.weights + self.optimizer + self.gradients + passing
        return self.weights + self.optimizer + max(self.gradients, passing)


def estimate_memory(
    model: Any,
    *,
    rows: int,
    length: int,
    cost: StepCost = PLAIN,
    bytes_per_weight: float = FLOAT32,
    mixed_precision: bool = False,
    recompute: bool = False,
    accumulates: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of one process.

    Args:
        model: The model on the meta device, with the method applied.
        rows: Rows of a micro-batch.
        length: Tokens of a row in the layers.
        cost: Cost of a step: the sum over loss, method, optimizer, regularizers and teachers.
        bytes_per_weight: Bytes of a frozen weight, 4 for float32. A value below 2 is that of
            quantized linear layers, such as 0.5 for 4-bit; all other weights are then float32.
        mixed_precision: Whether autocast computes in half precision.
        recompute: Whether activations are checkpointed.
        accumulates: See :class:`MemoryEstimate`.
    """
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    small = _linear_weights(model) if bytes_per_weight < HALF else every - trained
    frozen = small * bytes_per_weight + (every - trained - small) * FLOAT32
    activations = _activations(model, rows, length, cost, recompute)
    if mixed_precision:
        activations = round(activations * (MIXED_QUANTIZED if bytes_per_weight < HALF else MIXED))
        activations += _copies_in_half(model, frozen_too=bytes_per_weight == FLOAT32)
    return MemoryEstimate(
        weights=round(frozen) + trained * FLOAT32 + cost.other_weights,
        gradients=round(trained * FLOAT32 * (1 + cost.gradient_copies)),
        optimizer=round(trained * cost.bytes_per_weight),
        activations=activations + cost.extra_bytes,
        logits=_logits(model, rows * length, cost),
        accumulates=accumulates,
    )


def _activations(model: Any, rows: int, length: int, cost: StepCost, recompute: bool) -> int:
    """Return the bytes of all simultaneous passes, and of further tensors of those shapes."""
    text: Any = model.config.get_text_config()
    rows = round(rows * cost.batch_factor)
    one_pass = _activations_of_pass(model, rows, length, recompute)
    hidden = FLOAT32 * rows * length * text.hidden_size * cost.hidden_copies
    scores = FLOAT32 * rows * text.num_attention_heads * length**2 * cost.score_copies
    return int(one_pass * cost.live_passes + hidden + scores)


def _activations_of_pass(model: Any, rows: int, length: int, recompute: bool) -> int:
    """Return the bytes of a pass: counted, or 8 widths and 3 inner widths a token and layer."""
    text = model.config.get_text_config()
    layers: int = text.num_hidden_layers * (2 if model.config.is_encoder_decoder else 1)
    kept = kept_bytes(model, rows, length, on_cpu=not torch.accelerator.is_available())
    if kept is None:
        widths = 8 * text.hidden_size + 3 * _inner_size(text)
        kept = FLOAT32 * rows * length * widths * layers
    if not recompute:
        # At least the tensors of one layer and their gradients exist at a time.
        working = FLOAT32 * rows * length * (2 * _inner_size(text) + 3 * int(text.hidden_size))
        return int(kept - kept // layers + max(kept // layers, working))
    inputs = FLOAT32 * rows * length * int(text.hidden_size) * layers
    return int(inputs + kept // layers)  # the inputs of all layers, and all tensors of one layer


def _inner_size(text: Any) -> int:
    """Return the inner width of a layer's feed-forward network."""
    return int(text.to_dict().get("intermediate_size") or 4 * text.hidden_size)


def _logits(model: Any, tokens: int, cost: StepCost) -> int:
    """Return the bytes of logits, of their copies in the loss, and of a trained head's gradient."""
    head = model.get_output_embeddings()
    if head is None or cost.logits == "none":
        return 0
    logits = round(tokens * cost.batch_factor) * int(model.config.get_text_config().vocab_size)
    if cost.logits == "chunked":
        logits = min(logits, chunk_size(on_cpu=not torch.accelerator.is_available()))
    of_head: int = sum(p.numel() for p in head.parameters() if p.requires_grad)
    return round(FLOAT32 * (cost.logit_copies * logits + cost.live_passes * of_head))


def _copies_in_half(model: Any, *, frozen_too: bool) -> int:
    """Return the bytes of the half-precision copies of linear weights that autocast saves."""
    return HALF * sum(
        weight.numel() for weight in _linear(model) if weight.requires_grad or frozen_too
    )


def _linear(model: Any) -> list[Tensor]:
    return [part.weight for part in model.modules() if isinstance(part, nn.Linear)]


def _linear_weights(model: Any) -> int:
    """Count the weights of frozen linear layers, without the head of a language model."""
    whole = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    if (head := model.get_output_embeddings()) is not None:
        whole.append(head)
    spared = {id(part.weight) for part in whole}
    return sum(p.numel() for p in _linear(model) if not p.requires_grad and id(p) not in spared)
