# SPDX-License-Identifier: Apache-2.0
"""Row samplers that draw by weight or by class instead of using each row once per epoch.

A row sampler draws only from the generator that it is given, so seed and epoch decide the rows and
a run can be resumed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import TrainerCallback


@dataclass(frozen=True)
class EpochPosition:
    """Where an epoch stands in the run.

    Attributes:
        epoch: Its number, from 0.
        steps: Optimizer steps of an epoch.
        total: Those of the run.
        group: Rows of an optimizer step.
    """

    epoch: int = 0
    steps: int = 1
    total: int = 1
    group: int = 1


class RowSampler(ABC):
    """Chooses the rows of an epoch.

    Attributes:
        size: How many rows an epoch has.
    """

    size: int

    @abstractmethod
    def rows(self, generator: torch.Generator, position: EpochPosition) -> list[int]:
        """Return the indices of one epoch, in their order.

        Args:
            generator: Decides, with nothing else that is random.
            position: Where the epoch stands.
        """

    def expected(self) -> NDArray[np.float64] | None:
        """Return how often an epoch has each row on average, shape ``(N,)``.

        Returns:
            None if that changes during the run.
        """
        return None

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callbacks that tell it how the run goes."""
        return []

    def remarks(self, evaluations: int) -> list[str]:
        """Return warnings about settings that have no effect in a run this long.

        Args:
            evaluations: Number of evaluations while the run trains.
        """
        return []


class Weighted(RowSampler):
    """Rows drawn with replacement, as ``torch.utils.data.WeightedRandomSampler`` draws them.

    Args:
        weights: One a row, shape ``(N,)``, finite, none negative, not all zero; the scale means
            nothing.
    """

    def __init__(self, weights: ArrayLike) -> None:
        self.weights = torch.from_numpy(np.array(weights, dtype=np.float64))
        self.size = len(self.weights)

    def rows(self, generator: torch.Generator, position: EpochPosition) -> list[int]:
        """Return as many indices as there are rows; see :class:`RowSampler`."""
        drawn = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
        return list(map(int, drawn))

    def expected(self) -> NDArray[np.float64]:
        """Return the weights as shares of an epoch; see :class:`RowSampler`."""
        shares: NDArray[np.float64] = (self.weights / self.weights.sum() * self.size).numpy()
        return shares


def balanced(classes: NDArray[np.int64]) -> Weighted:
    """Return a row sampler that draws all classes alike: a row weighs 1 / rows of its class.

    Args:
        classes: Number of each row's class, shape ``(N,)``.
    """
    return Weighted(1 / np.bincount(classes)[classes])


class Equalized(RowSampler):
    """As many rows of each class, exactly.

    Each row stands as often as goes evenly; what is left of a class is drawn anew every epoch.

    Args:
        classes: Number of each row's class, shape ``(N,)``.
        to: Each class has as many rows as the ``largest`` or the ``smallest`` one.
    """

    def __init__(self, classes: NDArray[np.int64], to: Literal["largest", "smallest"]) -> None:
        counts = np.bincount(classes)
        present = counts[counts > 0]
        self.each = int(present.max() if to == "largest" else present.min())
        self.size = self.each * len(present)
        members = [torch.as_tensor(np.flatnonzero(classes == c)) for c in np.flatnonzero(counts)]
        self.members = members
        self._expected = self.each / counts[classes]

    def rows(self, generator: torch.Generator, position: EpochPosition) -> list[int]:
        """Return the rows of all classes, shuffled; see :class:`RowSampler`."""
        drawn = []
        for members in self.members:
            whole, rest = divmod(self.each, len(members))
            order = torch.randperm(len(members), generator=generator)
            drawn += [members.repeat(whole), members[order[:rest]]]
        together = torch.cat(drawn)
        return list(map(int, together[torch.randperm(self.size, generator=generator)]))

    def expected(self) -> NDArray[np.float64]:
        """Return rows wanted over rows there are, of the row's class; see :class:`RowSampler`."""
        return self._expected


def oversample(classes: NDArray[np.int64]) -> Equalized:
    """Return a row sampler that gives each class as many rows as the largest has.

    Args:
        classes: Number of each row's class, shape ``(N,)``.

    Example:
        >>> oversample(np.array([0, 0, 0, 1])).size
        6
    """
    return Equalized(classes, "largest")


def undersample(classes: NDArray[np.int64]) -> Equalized:
    """Return a row sampler that gives each class as many rows as the smallest has.

    Args:
        classes: Number of each row's class, shape ``(N,)``.

    Example:
        >>> undersample(np.array([0, 0, 0, 1])).size
        2
    """
    return Equalized(classes, "smallest")
