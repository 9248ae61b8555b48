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

from hftune.core.cost import StepCost
from hftune.losses.chunked_head import chunk_size
from hftune.training.memory.activations import kept_bytes

FLOAT32, HALF = 4, 2
#: What activations take under autocast, of those in float32: residuals, norms and rotary embeddings
#: stay as they are. Between quantized layers, which return what they get, nearly all do.
MIXED, MIXED_QUANTIZED = 0.65, 0.9
#: One pass with cross-entropy and AdamW.
PLAIN = StepCost(
    live_passes=1, forward_passes=1, logits="chunked", logit_copies=3, bytes_per_weight=8
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes.

    Attributes:
        weights: All parameters in the type they are loaded in, and those of other models.
        gradients: Of the trained parameters.
        optimizer: Its state, and all other copies of the trained parameters.
        activations: Kept for the backward pass, for one micro-batch.
        logits: Of a language model, with their gradient.
        accumulates: Whether gradients are there while activations are, since a step has several
            micro-batches or processes. Else the backward pass frees activations as it makes
            gradients, and never holds all of both.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    accumulates: bool = False

    @property
    def total(self) -> int:
        """The most that is there at a time."""
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
    """Estimate one process's memory.

    Args:
        model: On the meta device, with the method applied: what needs a gradient trains.
        rows: Rows of a micro-batch.
        length: Tokens that a row takes of the layers.
        cost: Of a step, as loss, method, optimizer, regularizers and teachers say it.
        bytes_per_weight: Of a frozen weight, 4 for float32. Below 2 it is that of quantized linear
            layers, 0.5 for 4-bit, and all else is float32.
        mixed_precision: Whether autocast computes in half precision.
        recompute: Whether activations are checkpointed.
        accumulates: Whether gradients of other micro-batches, or processes, are there already.
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
    """Return the bytes of all passes that are there at once, and of tensors like them."""
    text: Any = model.config.get_text_config()
    rows = round(rows * cost.batch_factor)
    one_pass = _activations_of_pass(model, rows, length, recompute)
    hidden = FLOAT32 * rows * length * text.hidden_size * cost.hidden_copies
    scores = FLOAT32 * rows * text.num_attention_heads * length**2 * cost.score_copies
    return int(one_pass * cost.live_passes + hidden + scores)


def _activations_of_pass(model: Any, rows: int, length: int, recompute: bool) -> int:
    """Bytes in float32: counted, or 8 widths a token and 3 inner ones in each layer."""
    text = model.config.get_text_config()
    layers: int = text.num_hidden_layers * (2 if model.config.is_encoder_decoder else 1)
    kept = kept_bytes(model, rows, length, on_cpu=not torch.accelerator.is_available())
    if kept is None:
        widths = 8 * text.hidden_size + 3 * _inner_size(text)
        kept = FLOAT32 * rows * length * widths * layers
    if not recompute:
        # At least what one layer computes and its gradients are there, whether kept or not.
        working = FLOAT32 * rows * length * (2 * _inner_size(text) + 3 * int(text.hidden_size))
        return int(kept - kept // layers + max(kept // layers, working))
    inputs = FLOAT32 * rows * length * int(text.hidden_size) * layers
    return int(inputs + kept // layers)  # and all of one layer


def _inner_size(text: Any) -> int:
    """Return the width inside of a layer's feed-forward network."""
    return int(text.to_dict().get("intermediate_size") or 4 * text.hidden_size)


def _logits(model: Any, tokens: int, cost: StepCost) -> int:
    """Logits and what the loss makes of them; with a head that trains, its gradient once more."""
    head = model.get_output_embeddings()
    if head is None or cost.logits == "none":
        return 0
    logits = round(tokens * cost.batch_factor) * int(model.config.get_text_config().vocab_size)
    if cost.logits == "chunked":
        logits = min(logits, chunk_size(on_cpu=not torch.accelerator.is_available()))
    of_head: int = sum(p.numel() for p in head.parameters() if p.requires_grad)
    return round(FLOAT32 * (cost.logit_copies * logits + cost.live_passes * of_head))


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
