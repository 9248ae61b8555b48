# SPDX-License-Identifier: Apache-2.0
"""Combine optimizers: each parameter group names the one that steps it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam

Part = tuple[type[Optimizer], dict[str, Any]]


class CombinedOptimizer(Optimizer):
    """Several optimizers with one list of groups and one state, for schedules and checkpoints.

    Args:
        groups: Parameter groups; ``part`` in each is the index of its optimizer.
        parts: Class and options of each optimizer.
        lr: The rate that schedules read.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], parts: Sequence[Part], lr: float) -> None:
        self.parts = [
            kind([group for group in groups if group["part"] == index], **options)
            for index, (kind, options) in enumerate(parts)
        ]  # they fill in what the groups leave open
        super().__init__(list(groups), {"lr": lr})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let the parts see the groups and the state as they are now."""
        for index, part in enumerate(self.parts):
            part.param_groups = [group for group in self.param_groups if group["part"] == index]
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


class RowAdam(SparseAdam):
    """``torch.optim.SparseAdam`` for gradients that are stored densely.

    Rows whose gradient is zero are left out, so neither the row nor its moments move. Clipping,
    accumulation and several processes see a plain gradient.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the rows that have a gradient."""
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        with torch.sparse.check_sparse_tensor_invariants(enable=False), _by_rows(held):
            return super().step(closure)  # type: ignore[no-untyped-call]


@contextmanager
def _by_rows(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Store the gradients sparsely for a while."""
    dense = [(parameter, parameter.grad) for parameter in parameters]
    try:
        for parameter, gradient in dense:
            parameter.grad = _sparse(gradient)
        yield
    finally:
        for parameter, gradient in dense:
            parameter.grad = gradient


def _sparse(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    rows = gradient.flatten(1).any(dim=1).nonzero().T
    return torch.sparse_coo_tensor(rows, gradient[rows[0]], gradient.shape, is_coalesced=True)
