# SPDX-License-Identifier: Apache-2.0
"""One difference to one weight, from dense with gates to sparse with a fixed mask."""

from typing import Any

import torch
from torch import Tensor, nn

from hftune.methods.diff_pruning.config import DiffPruningConfig
from hftune.methods.diff_pruning.gates import open_probability, sample_gates


class Difference(nn.Module):
    """The difference that is added to a weight.

    It is dense while it trains: ``delta`` times gates first, and after :meth:`project` times the
    mask ``kept``. :meth:`finish` leaves ``indices`` into the flat weight and their ``values``.
    All shapes stay the same until then, so that checkpoints of every phase fit each other.

    Args:
        weight: What it is added to.
        config: The adapter's.

    Example:
        >>> difference = Difference(torch.ones(2), DiffPruningConfig(mode="l1"))
        >>> difference(torch.tensor([3.0, 4.0])).tolist()  # zero at the start
        [3.0, 4.0]
    """

    def __init__(self, weight: Tensor, config: DiffPruningConfig) -> None:
        super().__init__()
        self.config = config
        self.shape = weight.shape
        self.is_projected = config.finished
        place: Any = {"device": weight.device, "dtype": torch.float32}
        if config.finished:
            self.values = nn.Parameter(torch.zeros(0, **place))
            self.register_buffer("indices", torch.zeros(0, dtype=torch.int64, device=weight.device))
            return
        self.delta = nn.Parameter(torch.zeros(weight.shape, **place))
        kept = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        self.register_buffer("kept", kept)
        self.register_buffer("projected", torch.zeros((), dtype=torch.bool, device=weight.device))
        if config.mode == "l0":
            start = config.alpha_init / self._gate_scale
            self.gates = nn.Parameter(torch.full(weight.shape, start, **place))
            if config.structured:
                self.group_gate = nn.Parameter(torch.full((1,), start, **place))

    kept: Tensor
    projected: Tensor
    indices: Tensor

    @property
    def finished(self) -> bool:
        """Whether only indices and values are left."""
        return "values" in self._parameters

    @property
    def _gate_scale(self) -> float:
        """Gates are stored divided by it: Adam moves all numbers alike, and gates go far."""
        return self.config.gate_lr_ratio or 1.0

    def forward(
        self, weight: Tensor, rows: Tensor | None = None, *, noise: bool | None = None
    ) -> Tensor:
        """Return the weight with the difference, in the weight's type; sums are in float32.

        Args:
            weight: The whole weight, or the rows of it.
            rows: Which rows ``weight`` holds; all of them when None. Not of a finished difference.
            noise: Whether gates are drawn; as the module's mode says when None.
        """
        if self.finished:
            flat = weight.reshape(-1)
            there = flat[self.indices].float() + self.values
            return flat.index_copy(0, self.indices, there.to(flat.dtype)).view_as(weight)
        noise = self.training if noise is None else noise
        return (weight.float() + self.dense(rows, noise=noise)).to(weight.dtype)

    def dense(self, rows: Tensor | None = None, *, noise: bool = False) -> Tensor:
        """Return the difference, or rows of it, with gates drawn or as evaluation has them."""
        delta = self.delta if rows is None else self.delta[rows]
        if self.is_projected:
            kept = self.kept if rows is None else self.kept[rows]
            return delta * kept * self.config.finishing_lr_ratio
        if self.config.mode == "l1":
            return delta
        gates = self.gates if rows is None else self.gates[rows]
        delta = delta * sample_gates(gates * self._gate_scale, noise=noise)
        if self.config.structured:
            delta = delta * sample_gates(self.group_gate * self._gate_scale, noise=noise)
        return delta

    def counted_gates(self) -> Tensor:
        """Return the expected number of open gates, shape ``()``; a group counts as one.

        It is above :meth:`expected_nonzero`, and what the authors' program takes. The product would
        push the one gate of a matrix with the weight of all its entries, and close whole matrices
        at once.
        """
        number = open_probability(self.gates * self._gate_scale).sum()
        if self.config.structured:
            number = number + open_probability(self.group_gate[0] * self._gate_scale)
        return number

    def expected_nonzero(self) -> Tensor:
        """Return the expected number of open gates, shape ``()``; Guo et al., section 3.2."""
        number = open_probability(self.gates * self._gate_scale).sum()
        if self.config.structured:
            number = number * open_probability(self.group_gate[0] * self._gate_scale)
        return number

    @torch.no_grad()
    def magnitudes(self) -> Tensor:
        """Return the difference times the probability of its gates, for the projection.

        A gate without noise is zero below one half, where many entries end; so would they be.
        """
        size = self.delta.abs()
        if self.config.mode == "l1":
            return size
        size *= open_probability(self.gates * self._gate_scale)
        if self.config.structured:
            size *= open_probability(self.group_gate * self._gate_scale)
        return size

    @torch.no_grad()
    def project(self, kept: Tensor) -> None:
        """Fix the mask; dropped entries are zero from here on, and gates have no effect."""
        self.delta.copy_(self.dense() * kept / self.config.finishing_lr_ratio)
        self.kept.copy_(kept)
        self.projected.fill_(True)
        self.is_projected = True

    @torch.no_grad()
    def finish(self) -> None:
        """Keep indices and values alone, and let the dense tensors go."""
        flat = self.dense().flatten()
        indices = flat.nonzero().flatten()
        trains = self.delta.requires_grad
        for name in ("delta", "gates", "group_gate"):
            self._parameters.pop(name, None)
        for name in ("kept", "projected"):
            self._buffers.pop(name)
        self.values = nn.Parameter(flat[indices].clone(), requires_grad=trains)
        self.register_buffer("indices", indices)

    def resize(self, indices: Tensor) -> None:
        """Make room for a stored difference."""
        self.indices = indices.to(self.values.device)
        empty = torch.empty(len(indices), dtype=torch.float32, device=self.values.device)
        self.values = nn.Parameter(empty, requires_grad=self.values.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *more: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *more)
        if f"{prefix}projected" in state_dict:
            self.is_projected = bool(self.projected)
