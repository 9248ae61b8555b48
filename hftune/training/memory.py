# SPDX-License-Identifier: Apache-2.0
"""How much memory a run will take, from the model's shapes and before any weight is loaded.

Weights, gradients and optimizer state are counted exactly. Activations are estimated from the sizes
of a transformer layer, as Korthikanti et al., "Reducing Activation Recomputation in Large
Transformer Models", 2022, arXiv:2205.05198 count them, in the type of the computation.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

FLOAT32, HALF = 4, 2
ADAM_BYTES = 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes.

    Attributes:
        weights: All parameters in the type they are loaded in.
        gradients: Of the trained parameters.
        optimizer: Its state.
        activations: Kept for the backward pass, for one micro-batch.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: nn.Module,
    config: PreTrainedConfig,
    *,
    rows: int,
    length: int,
    bytes_per_weight: float = FLOAT32,
    bytes_per_activation: int = FLOAT32,
    state_bytes: float = ADAM_BYTES,
    recompute: bool = False,
) -> MemoryEstimate:
    """Estimate one process's memory.

    Args:
        model: On the meta device, with the method applied: what needs a gradient trains.
        config: The model's config.
        rows: Rows of a micro-batch.
        length: Tokens of its longest row.
        bytes_per_weight: Of a frozen weight, 4 for float32. Below 2 it is that of quantized linear
            layers, 0.5 for 4-bit, and all else is float32.
        bytes_per_activation: 4, or 2 under mixed precision.
        state_bytes: What the optimizer and an average keep of each weight that trains.
        recompute: Whether activations are checkpointed.
    """
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    small = _linear_weights(model) if bytes_per_weight < HALF else every - trained
    frozen = small * bytes_per_weight + (every - trained - small) * FLOAT32
    return MemoryEstimate(
        weights=round(frozen) + trained * FLOAT32,
        gradients=trained * FLOAT32,
        optimizer=round(trained * state_bytes),
        activations=bytes_per_activation
        * _activations(config, rows, length, recompute, _is_language_model(model)),
    )


def _activations(
    config: PreTrainedConfig, rows: int, length: int, recompute: bool, is_language_model: bool
) -> int:
    """Elements kept by attention (8 widths a token), MLP (2 inner widths) and the LM head."""
    text = config.get_text_config()
    tokens = rows * length
    inner = text.to_dict().get("intermediate_size") or 4 * text.hidden_size
    layer = tokens * (8 * text.hidden_size + 3 * inner)
    layers = text.num_hidden_layers * (2 if config.is_encoder_decoder else 1)
    kept = tokens * text.hidden_size * layers + layer
    if not recompute:
        kept = layer * layers
    logits = 2 * tokens * text.vocab_size if is_language_model else 0
    return int(kept + logits)


def _linear_weights(model: Any) -> int:
    """Count the weights of frozen linear layers but for the head of a language model."""
    whole = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    if (head := model.get_output_embeddings()) is not None:
        whole.append(head)
    spared = {id(part.weight) for part in whole}
    layers = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
    return sum(p.numel() for p in layers if not p.requires_grad and id(p) not in spared)


def _is_language_model(model: Any) -> bool:
    """Tell whether the head gives a score to each token of the vocabulary."""
    return model.get_output_embeddings() is not None
