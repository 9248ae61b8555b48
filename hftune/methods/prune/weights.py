# SPDX-License-Identifier: Apache-2.0
"""Single weights: the ones that may be pruned, and masks of those that stay.

A mask is true where a weight stays.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hftune.core.errors import HftuneError

GROUP = 4
KEPT_OF_GROUP = 2


def prunable_weights(
    model: nn.Module,
    target_modules: Sequence[str] | None = None,
    exclude_modules: Sequence[str] = (),
) -> dict[str, int]:
    """Return the names of the weights that may be pruned, and the dimension of their inputs.

    By default these are the linear layers in the model's stacks of layers: embeddings, norms,
    biases, poolers and heads stay whole.

    Args:
        model: May be on the meta device.
        target_modules: Names, or ends of names, of linear layers to take instead.
        exclude_modules: Names, or ends of names, to leave out.

    Raises:
        HftuneError: A name finds nothing, nothing is left, or a weight is an embedding too.
    """
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    stacks = [f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    _check_names("target_modules", target_modules or (), linear)
    _check_names("exclude_modules", exclude_modules, linear)
    if target_modules is None:
        chosen = [name for name in linear if name.startswith(tuple(stacks))]
    else:
        chosen = [name for name in linear if _matches(name, target_modules)]
    chosen = [name for name in chosen if not _matches(name, exclude_modules)]
    if not chosen:
        raise HftuneError(f"method prune: {type(model).__name__} has no linear layer to prune")
    owners = Counter(
        id(p) for m in model.modules() for p in m.parameters(recurse=False) if p.ndim > 1
    )
    tied = [name for name in chosen if owners[id(linear[name].weight)] > 1]
    if tied:
        raise HftuneError(
            f"method.target_modules: the weight of {tied[0]} is that of another module too, such "
            "as the embedding, which is not pruned"
        )
    return {f"{n}.weight": 0 if isinstance(linear[n], Conv1D) else 1 for n in chosen}


def drop_smallest(scores: Sequence[Tensor], pruned: int) -> list[Tensor]:
    """Mark all but the smallest scores of all tensors together.

    Of equal scores the first ones go, so that the number is exact and every process agrees.

    Args:
        scores: Of any shapes.
        pruned: How many go.

    Returns:
        Masks of the same shapes.

    Example:
        >>> drop_smallest([torch.tensor([3.0, 1.0, 2.0])], 1)[0].tolist()
        [True, False, True]
    """
    flat = torch.cat([score.reshape(-1) for score in scores])
    if pruned == 0:
        keep = torch.ones_like(flat, dtype=torch.bool)
    else:
        bound = flat.kthvalue(pruned).values
        keep = flat > bound
        equal = (flat == bound).nonzero().flatten()
        keep[equal[pruned - int((flat < bound).sum()) :]] = True
    parts = keep.split([score.numel() for score in scores])
    return [part.view(score.shape).clone() for part, score in zip(parts, scores, strict=True)]


def keep_two_of_four(scores: Tensor, dim: int) -> Tensor:
    """Mark the two largest scores of each four that lie side by side.

    Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378.

    Args:
        scores: Of a weight.
        dim: Along which its inputs lie; the length divides by four.

    Example:
        >>> keep_two_of_four(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 1).tolist()
        [[True, False, True, False]]
    """
    groups = scores.movedim(dim, -1).unflatten(-1, (-1, GROUP))
    smallest = groups.argsort(dim=-1, stable=True)[..., : GROUP - KEPT_OF_GROUP]
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, smallest, False)
    return keep.flatten(-2).movedim(-1, dim)


def check_widths(model: nn.Module, weights: dict[str, int]) -> None:
    """Raise HftuneError where a row of inputs cannot be divided by four."""
    odd = {
        name: size
        for name, dim in weights.items()
        if (size := model.get_parameter(name).shape[dim]) % GROUP
    }
    if odd:
        name, size = next(iter(odd.items()))
        raise HftuneError(
            f"method.structure: 2:4 needs a number of inputs that divides by 4, and "
            f"{name.removesuffix('.weight')} has {size}",
            hint=f"exclude_modules: [{name.split('.')[-2]}] leaves it whole",
        )


def _check_names(option: str, names: Iterable[str], linear: Iterable[str]) -> None:
    missing = [name for name in names if not any(_matches(module, [name]) for module in linear)]
    if missing:
        ends = sorted({module.rpartition(".")[2] for module in linear})
        raise HftuneError(
            f"method.{option}: no linear layer is called {', '.join(missing)}",
            hint=f"candidates: {', '.join(ends)}",
        )


def _matches(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
