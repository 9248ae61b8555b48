# SPDX-License-Identifier: Apache-2.0
"""Combine fine-tuned models of one base: weight their differences from the base and add them up.

The differences are those of whole weights, as in Ilharco et al., "Editing Models with Task
Arithmetic", 2023, arXiv:2212.04089, so any method may have trained the models. The combinations are
PEFT's functions and have PEFT's names; ``add_weighted_adapter`` applies them to LoRA's factors.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from peft.utils import merge_utils
from torch import Tensor

from hftune.core.errors import HftuneError

StateDict = Mapping[str, Tensor]

#: Combinations that drop entries of the differences -> PEFT's function.
THINNED = {
    "magnitude_prune": merge_utils.magnitude_prune,
    "ties": merge_utils.ties,
    "dare_linear": merge_utils.dare_linear,
    "dare_ties": merge_utils.dare_ties,
}
COMBINATIONS = ("linear", *THINNED)


def combine(
    base: StateDict,
    parts: Sequence[StateDict],
    weights: Sequence[float],
    *,
    new: Collection[str] = (),
    combination: str = "linear",
    density: float = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight of the combined model.

    ``linear`` is ``base + sum of weight * (part - base)``. Weights that the base lacks become the
    weighted mean of the parts with every combination.

    Args:
        base: Weights of the base.
        parts: Weights of the models, with the same names and shapes.
        weights: Weight of each part; with ``new`` names their sum must not be 0.
        new: Names that the checkpoint of the base lacks.
        combination: One of ``COMBINATIONS``.
        density: Share of the entries of each difference that stays; ``linear`` keeps all.

    Raises:
        HftuneError: A shape differs.

    Example:
        >>> base, one, two = ({"w": torch.tensor([x])} for x in (1.0, 2.0, 4.0))
        >>> dict(combine(base, [one, two], [0.5, 1.0]))
        {'w': tensor([4.5000])}
    """
    factors = torch.tensor(weights)
    for name, start in base.items():
        tensors = [part[name] for part in parts]
        _check_shapes(name, [start, *tensors])
        if name in new:
            total = sum(weights)
            yield name, sum(w / total * t for w, t in zip(weights, tensors, strict=True))  # type: ignore[misc]
            continue
        changes = [tensor - start for tensor in tensors] if start.is_floating_point() else []
        if not any(change.any() for change in changes):
            yield name, start
        elif combination == "linear":
            yield name, start + merge_utils.task_arithmetic(changes, factors)
        else:
            yield name, start + THINNED[combination](changes, factors, density)


def _check_shapes(name: str, tensors: Sequence[Tensor]) -> None:
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise HftuneError(f"{name} has other shapes in base and runs: {shapes}")
