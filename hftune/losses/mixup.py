# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix: the model sees two rows of a micro-batch in one, and is asked for both labels.

``x = s * x_i + (1 - s) * x_j`` with the share ``s`` out of Beta(alpha, alpha), and the loss
``s * loss(y_i) + (1 - s) * loss(y_j)``. Words cannot be mixed, so the vectors that stand for them
are, and images by their pixels. Where only one of two texts has a token, nothing of the other is
added to it, and the mixed row is as long as the longer text. Of two texts the row itself is the
larger part, ``max(s, 1 - s)``: partners are drawn at random, so as many mixtures are made of each
kind. CutMix pastes a box of one image into the other instead, and the share of a label is that of
the area.

Each row is row ``i`` once and row ``j`` once, so with one share a micro-batch the labels' weights
sum up to what they do without mixing, and the denominator holds exactly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.core.cost import StepCost
from hftune.core.errors import RunError
from hftune.core.rng import process_index
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import (
    Batch,
    counted,
    forward,
    in_full,
    refuse_encoder_decoder,
)
from hftune.models.structure import pretrained_in

PIXELS = "pixel_values"


@dataclass(frozen=True)
class Pairs:
    """The pairs of rows that are mixed, and their shares.

    Attributes:
        partner: Index of the other row, a permutation, shape ``(B,)``.
        share: Of the row itself, shape ``(B,)``, float64.
        generator: For what else is drawn.
    """

    partner: Tensor
    share: Tensor
    generator: np.random.Generator


@dataclass(kw_only=True)
class Mixup(CrossEntropy):
    """Cross-entropy of mixed rows.

    Args:
        alpha: Of the Beta distribution; the smaller, the nearer one of both rows; 0.2 as in the
            paper, where 0.1 to 0.4 helped.
        per: Whether a ``batch`` or each ``row`` draws a share.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018, arXiv:1710.09412.
        Guo et al., "Augmenting Data with Mixup for Sentence Classification", 2019,
            arXiv:1905.08941 (on word embeddings).
    """

    alpha: float = 0.2
    per: Literal["batch", "row"] = "batch"

    def check(self, model: nn.Module) -> None:
        """Raise :class:`HftuneError` if the model cannot be given mixed rows."""
        refuse_encoder_decoder(model, "mixup mixes what an encoder, or a decoder, reads")

    def step_cost(self) -> StepCost:
        """Return the cost of one pass, and of the vectors of both rows before they are mixed."""
        return super().step_cost() + StepCost(hidden_copies=2)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the outputs of the mixed rows; see :class:`Loss`."""
        labels = inputs["labels"]
        pairs = self.draw(labels)
        if PIXELS in inputs:
            pixels, share = self.pixels(inputs[PIXELS], pairs)
            outputs = forward(model, {**inputs, PIXELS: pixels})
        else:
            share = torch.maximum(pairs.share, 1 - pairs.share)
            own = inputs["attention_mask"].ne(0)
            other = own[pairs.partner] & share[:, None].lt(1)
            weights = own * share[:, None], other * (1 - share)[:, None]
            with mixed_embeddings(model, *weights, pairs.partner):
                outputs = forward(model, joined(inputs, own, other, pairs.partner))
        here = counted(labels)
        targets = soft_labels(labels, share, pairs.partner, outputs.logits.shape[-1])
        logits = in_full(outputs.logits[here])
        return self.cross_entropy(logits, targets[here].to(logits)), outputs

    def draw(self, labels: Tensor) -> Pairs:
        """Pair the rows that have a label, on each process by itself.

        The draws follow torch's own generator, which a resumed run sets back.
        """
        seed = int(torch.randint(2**62, ()))
        generator = np.random.default_rng([seed, process_index()])
        rows = counted(labels).nonzero()[:, 0]
        partner = torch.arange(len(labels), device=labels.device)
        partner[rows] = rows[torch.from_numpy(generator.permutation(len(rows))).to(rows)]
        drawn = generator.beta(self.alpha, self.alpha, size=len(labels) if self.per == "row" else 1)
        precise = torch.float32 if labels.device.type == "mps" else torch.float64
        share = torch.from_numpy(drawn).to(labels.device, precise)
        return Pairs(partner, share.expand(len(labels)), generator)

    def pixels(self, pixels: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return mixed images, shape ``(B, C, H, W)``, and the share of each row's own label."""
        return mixed(pixels, pairs.share, pairs.partner), pairs.share


@dataclass(kw_only=True)
class CutMix(Mixup):
    """Cross-entropy of images with a box of another image in them.

    Args:
        alpha: Of the Beta distribution of the area that stays; 1, any area, as in the paper.

    References:
        Yun et al., "CutMix", 2019, arXiv:1905.04899, equations 1 and 2.
    """

    alpha: float = 1.0

    def pixels(self, pixels: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return images with boxes, and the share of the area that is left; see :class:`Mixup`."""
        rows = len(pixels) if self.per == "row" else 1
        height, width = pixels.shape[-2:]
        share = pairs.share[:rows].cpu().numpy()
        boxes = [
            edges(size, share, pairs.generator.integers(size, size=rows))
            for size in (height, width)
        ]
        inside = [
            _on(pixels, low)[:, None].le(at) & _on(pixels, high)[:, None].gt(at)
            for (low, high), size in zip(boxes, (height, width), strict=True)
            for at in [torch.arange(size, device=pixels.device)]
        ]
        box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        left = 1 - box.to(pairs.share).mean(dim=(1, 2, 3))
        return torch.where(box, pixels[pairs.partner], pixels), left.expand(len(pixels))


def edges(size: int, share: Any, centre: Any) -> tuple[Any, Any]:
    """Return where boxes begin and end along one side of an image, cut off at its border.

    Args:
        size: Of the side.
        share: Of the area outside of a box that is not cut off, NumPy, shape ``(N,)``.
        centre: Of the boxes, whole numbers, the same shape.
    """
    length = (size * np.sqrt(1 - share)).astype(int)
    return (centre - length // 2).clip(0, size), (centre - length // 2 + length).clip(0, size)


def mixed(values: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """Return ``share * own + (1 - share) * other`` of any float values.

    Args:
        values: Shape ``(B, ...)``.
        share: Of the row itself, shape ``(B,)``.
        partner: Index of the other row, shape ``(B,)``.
    """
    own = share.to(values).reshape(-1, *[1] * (values.dim() - 1))
    return own * values + (1 - own) * values[partner]


def soft_labels(labels: Tensor, share: Tensor, partner: Tensor, num_classes: int) -> Tensor:
    """Return how much each class counts in a mixed row, shape ``(B, C)``.

    Args:
        labels: Class ids, shape ``(B,)``; rows without a label are nobody's partner.
        share: Of the row itself, shape ``(B,)``.
        partner: Index of the other row, shape ``(B,)``.
        num_classes: Their number.
    """
    return mixed(F.one_hot(labels.clamp(min=0), num_classes).to(share), share, partner)


def joined(inputs: Batch, own: Tensor, other: Tensor, partner: Tensor) -> dict[str, Tensor]:
    """Return inputs that are as long as both rows together: ids and types where either has one.

    Models look at the ids to find a row's end, or its positions; their vectors are mixed later.

    Args:
        inputs: Values by token have the shape of the mask.
        own: Where the row itself counts, bool, shape ``(B, T)``.
        other: Where its partner does, the same shape.
        partner: Index of the other row, shape ``(B,)``.
    """
    theirs = other & ~own
    tokens = {
        name: torch.where(theirs, value[partner], value)
        for name, value in inputs.items()
        if value.shape == own.shape
    }
    both = (own | other).to(inputs["attention_mask"])
    return {**inputs, **tokens, "attention_mask": both}


@contextmanager
def mixed_embeddings(
    model: nn.Module, own: Tensor, other: Tensor, partner: Tensor
) -> Iterator[None]:
    """Let a model read mixed vectors in place of its tokens'.

    Args:
        model: It may be wrapped.
        own: What the row itself counts at each token, shape ``(B, T)``.
        other: What its partner counts, the same shape.
        partner: Index of the other row, shape ``(B,)``.

    Raises:
        RunError: The model reads its tokens in another order.
    """

    def mix(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.shape[:2] != own.shape:
            raise RunError(
                f"loss: mixup needs one vector a token, rows by tokens {tuple(own.shape)}; "
                f"the model made {tuple(output.shape)}",
                hint="take model.attn_implementation: sdpa",
            )
        first, second = (weight.to(output)[..., None] for weight in (own, other))
        return first * output + second * output[partner]

    handle = pretrained_in(model).get_input_embeddings().register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()


def _on(value: Tensor, numbers: Any) -> Tensor:
    return torch.as_tensor(numbers, device=value.device)
