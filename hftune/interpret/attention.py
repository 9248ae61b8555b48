# SPDX-License-Identifier: Apache-2.0
"""Attention weights of one row, layer by layer and head by head.

Only eager attention returns its weights; other implementations never hold them. So the model uses
eager attention for this pass and its own implementation afterwards.

Axes: ``L`` layers, ``H`` heads, ``Q`` tokens that attend, ``K`` tokens that are attended to.

References:
    Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
    Jain and Wallace, "Attention is not Explanation", 2019, arXiv:1902.10186.
    Wiegreffe and Pinter, "Attention is not not Explanation", 2019, arXiv:1908.04626.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, PeftType
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hftune.core.errors import HftuneError, RunError
from hftune.tasks.token_texts import Token, virtual_tokens

EAGER = "eager"
TOLERANCE = 1e-5
OTHER_MEANS = "models without attention layers, such as Mamba and RWKV, mix tokens by other means"
#: Field of the model's output -> kind of map, and whether its queries and keys are decoder tokens.
FIELDS = {
    "attentions": ("self", False, False),
    "encoder_attentions": ("encoder", False, False),
    "decoder_attentions": ("decoder", True, True),
    "cross_attentions": ("cross", True, False),
}


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """Attention of one kind, for one row.

    Attributes:
        kind: ``self``, or ``encoder``, ``decoder`` or ``cross`` for an encoder-decoder.
        layers: The layers' numbers in the model.
        queries: The Q tokens that attend.
        keys: The K tokens that are attended to.
        weights: float32, shape ``(L, H, Q, K)``; each row sums to 1.
    """

    kind: str
    layers: list[int]
    queries: list[Token]
    keys: list[Token]
    weights: NDArray[np.float32]

    @property
    def causal(self) -> bool:
        """Whether no token attends to a later one, according to the weights."""
        if self.kind == "cross":
            return False
        Q, K = self.weights.shape[-2:]
        return Q > 1 and not np.triu(self.weights, k=K - Q + 1).any()

    def without_special(self) -> "AttentionMap":
        """Return the map without special tokens.

        The rest is not renormalised: a row sums to the share of the tokens that stay.

        Raises:
            HftuneError: All tokens are special.
        """
        rows = [i for i, token in enumerate(self.queries) if not token.special]
        columns = [i for i, token in enumerate(self.keys) if not token.special]
        if not rows or not columns:
            what = "" if self.kind == "self" else f"{self.kind} attention: "
            raise HftuneError(f"{what}all tokens are special tokens, so hiding them leaves nothing")
        return replace(
            self,
            queries=[self.queries[i] for i in rows],
            keys=[self.keys[i] for i in columns],
            weights=self.weights[:, :, rows][..., columns],
        )


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Switch a model, or the base of a PEFT model, to eager attention inside the context.

    Raises:
        HftuneError: The model has no eager attention to switch to.
    """
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    before = _implementations(plain.config)
    try:
        try:
            plain.set_attn_implementation(EAGER)
        except (ValueError, ImportError) as error:
            raise HftuneError(f"{type(plain).__name__} has no eager attention: {error}") from error
        if plain.config._attn_implementation != EAGER:
            raise HftuneError(
                f"{type(plain).__name__} cannot be switched to eager attention, and "
                f"{before[''] or 'its own'} attention keeps no weights"
            )
        yield
    finally:
        plain.set_attn_implementation(before)


def attention_maps(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    tokens: Sequence[Token],
    decoder_tokens: Sequence[Token] = (),
) -> tuple[list[AttentionMap], Any]:
    """Run the model once, in evaluation mode, and return its attention and its outputs.

    Virtual tokens of prompt methods come first. Prompt tuning and p-tuning add them to the input,
    so virtual tokens are queries and keys. Prefix tuning adds keys and values, so virtual tokens
    are keys only. In an encoder-decoder, prompt tuning and p-tuning act on the encoder and prefix
    tuning acts on the decoder.

    Args:
        model: A Transformers model, or a PEFT model around one.
        inputs: One row without padding, tensors of shape ``(1, T)``.
        tokens: The T tokens.
        decoder_tokens: Tokens of ``decoder_input_ids``, for an encoder-decoder.

    Raises:
        HftuneError: The model has no attention, or not one weight for each pair of tokens.
        RunError: The weights of some token do not sum to 1.
    """
    training = model.training
    model.eval()
    try:
        with eager_attention(model), torch.inference_mode():
            outputs = model(**inputs, output_attentions=True)
    finally:
        model.train(training)
    name = type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
    virtual = virtual_tokens(num_virtual_tokens(model))
    maps = []
    for field, (kind, decoder_attends, decoder_attended) in FIELDS.items():
        given = [layer for layer in outputs.get(field) or () if layer is not None]
        if not given:
            continue
        weights = _stacked(given, name)
        queries = _axis(weights.shape[2], decoder_tokens if decoder_attends else tokens, virtual)
        keys = _axis(weights.shape[3], decoder_tokens if decoder_attended else tokens, virtual)
        if queries is None or keys is None:
            shown = [
                len(decoder_tokens if d else tokens) for d in (decoder_attends, decoder_attended)
            ]
            raise HftuneError(
                f"{name} gives attention of {weights.shape[2]} x {weights.shape[3]} for "
                f"{shown[0]} x {shown[1]} tokens: not one weight for each pair"
            )
        _check_rows(weights, given[0].dtype, name)
        layers = _layer_numbers(model.config, len(given), kind)  # type: ignore[arg-type]
        maps.append(
            AttentionMap(kind=kind, layers=layers, queries=queries, keys=keys, weights=weights)
        )
    if not maps:
        raise HftuneError(
            f"{name} has no attention to show: it returns none",
            hint=OTHER_MEANS,
        )
    return maps, outputs


def remarks(model: nn.Module) -> list[str]:
    """Return notes on effects of a method that the attention weights do not show."""
    if isinstance(model, PeftModel):
        config = model.peft_config[model.active_adapter]
        if config.peft_type == PeftType.ADAPTION_PROMPT:
            return [
                "adaption_prompt attends to its own prompts by a second softmax beside the "
                "model's; only the model's is shown"
            ]
    return []


def sharpest_head(one: AttentionMap) -> tuple[int, int, float] | None:
    """Return the layer, the head and the mean share of the sharpest head.

    The sharpest head is the one whose tokens give the largest share to a single other token.
    Special tokens, virtual tokens, the first token (a sink for unneeded attention) and a token's
    attention to itself do not count. Return None if fewer than two tokens count.
    """
    counted = [not token.special and token.segment != "virtual" for token in one.keys]
    counted[0] = False
    columns = np.flatnonzero(counted)
    offset = len(one.keys) - len(one.queries)
    rows = columns - offset
    if one.kind == "cross":
        rows = np.flatnonzero([token.segment != "virtual" for token in one.queries])
    if len(columns) < 2:
        return None
    weights = one.weights[:, :, rows][..., columns].copy()
    if one.kind != "cross":
        weights[..., np.arange(len(rows)), np.arange(len(columns))] = 0
    shares = weights.max(-1).mean(-1)
    layer, head = np.unravel_index(int(shares.argmax()), shares.shape)
    return one.layers[layer], int(head), float(shares[layer, head])


def _implementations(config: PreTrainedConfig) -> dict[str, object]:
    """Return the attention of a config and its sub-configs, for ``set_attn_implementation``."""
    inside = {name: getattr(config, name) for name in config.sub_configs}
    return {
        "": config._attn_implementation,
        **{name: _implementations(part) for name, part in inside.items() if part is not None},
    }


def num_virtual_tokens(model: nn.Module) -> int:
    """Return the number of virtual tokens of a prompt method; 0 for other models.

    Example:
        >>> num_virtual_tokens(nn.Linear(2, 2))
        0
    """
    if isinstance(model, PeftModel):
        config: Any = model.peft_config[model.active_adapter]
        if config.is_prompt_learning:
            return int(config.num_virtual_tokens)
    return 0


def _axis(size: int, tokens: Sequence[Token], virtual: list[Token]) -> list[Token] | None:
    """Return the tokens along an axis of this size, virtual ones included; None if none fit."""
    whole = [*virtual, *tokens]
    return whole[len(whole) - size :] if size in (len(tokens), len(whole)) else None


def _stacked(layers: Sequence[Tensor], name: str) -> NDArray[np.float32]:
    """Stack all layers into one array; refuse outputs of other shapes."""
    shapes = {tuple(layer.shape) for layer in layers}
    if any(len(shape) != 4 or shape[0] != 1 for shape in shapes):
        raise HftuneError(
            f"{name} has no attention to show: what it returns for it has the shape "
            f"{min(shapes)}, not (1, heads, tokens, tokens)",
            hint=OTHER_MEANS,
        )
    if len(shapes) > 1:
        raise HftuneError(f"{name} has layers of different shapes: {sorted(shapes)}")
    stacked: NDArray[np.float32] = torch.cat(list(layers)).float().cpu().numpy()
    return stacked


def _check_rows(weights: NDArray[np.float32], dtype: torch.dtype, name: str) -> None:
    sums = weights.sum(-1, dtype=np.float64)
    worst = sums.flat[np.abs(sums - 1).argmax()]
    allowed = max(TOLERANCE, float(torch.finfo(dtype).eps))  # half precision rounds each weight
    if not abs(worst - 1) <= allowed or weights.min() < 0:
        raise RunError(
            f"{name}: the attention of a token sums to {worst:.4f}, not to 1",
            hint="a model with attention sinks gives a share to none of the tokens",
        )


def _layer_numbers(config: PreTrainedConfig, count: int, kind: str) -> list[int]:
    """Return the numbers of the layers; hybrid models have attention in only some of them."""
    kinds = getattr(config.get_text_config(), "layer_types", None)
    if kind == "self" and kinds is not None and len(kinds) > count:
        attending = [i for i, one in enumerate(kinds) if "attention" in one and "linear" not in one]
        if len(attending) == count:
            return attending
    return list(range(count))
