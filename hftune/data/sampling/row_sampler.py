# SPDX-License-Identifier: Apache-2.0
"""Which rows an epoch has, where that is not each of them once: drawn by weight, or by class.

What is drawn depends on a generator alone, so seed and epoch decide it and a run can be resumed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Place:
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


class Draw(ABC):
    """Chooses the rows of an epoch.

    Attributes:
        size: How many rows an epoch has.
    """

    size: int

    @abstractmethod
    def rows(self, generator: torch.Generator, place: Place) -> list[int]:
        """Return the indices of one epoch, in their order.

        Args:
            generator: Decides, with nothing else that is random.
            place: Where the epoch stands.
        """


class Sampling(Draw):
    """A draw that is the same in every epoch, but for chance."""

    @abstractmethod
    def expected(self) -> NDArray[np.float64]:
        """Return how often an epoch has each row, on average, shape ``(N,)``."""


class Weighted(Sampling):
    """Rows drawn with replacement, as ``torch.utils.data.WeightedRandomSampler`` draws them.

    Args:
        weights: One a row, shape ``(N,)``, finite, none negative, not all zero; the scale means
            nothing.
    """

    def __init__(self, weights: ArrayLike) -> None:
        self.weights = torch.from_numpy(np.array(weights, dtype=np.float64))
        self.size = len(self.weights)

    def rows(self, generator: torch.Generator, place: Place) -> list[int]:
        """Return as many indices as there are rows; see :class:`Draw`."""
        drawn = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
        return list(map(int, drawn))

    def expected(self) -> NDArray[np.float64]:
        """Return the weights as shares of an epoch; see :class:`Sampling`."""
        shares: NDArray[np.float64] = (self.weights / self.weights.sum() * self.size).numpy()
        return shares


def balanced(classes: NDArray[np.int64]) -> Weighted:
    """Return a draw in which all classes are equally likely: a row weighs 1 / rows of its class.

    Args:
        classes: Number of each row's class, shape ``(N,)``.
    """
    return Weighted(1 / np.bincount(classes)[classes])


class Equalized(Sampling):
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

    def rows(self, generator: torch.Generator, place: Place) -> list[int]:
        """Return the rows of all classes, shuffled; see :class:`Draw`."""
        drawn = []
        for members in self.members:
            whole, rest = divmod(self.each, len(members))
            order = torch.randperm(len(members), generator=generator)
            drawn += [members.repeat(whole), members[order[:rest]]]
        together = torch.cat(drawn)
        return list(map(int, together[torch.randperm(self.size, generator=generator)]))

    def expected(self) -> NDArray[np.float64]:
        """Return rows wanted over rows there are, of the row's class; see :class:`Sampling`."""
        return self._expected
