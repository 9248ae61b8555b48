# SPDX-License-Identifier: Apache-2.0
"""Easy rows first: each optimizer step draws from the easiest rows, of which it takes ever more.

Sources: Bengio et al., "Curriculum Learning", ICML 2009; Platanios et al., "Competence-based
Curriculum Learning for Neural Machine Translation", 2019, arXiv:1903.09848 (rarity; linear and root
pacing); Hacohen and Weinshall, "On The Power of Curriculum Learning in Training Deep Networks",
2019, arXiv:1904.03626 (exponential pacing, the hardest first, and the loss of another model).
"""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from hftune.core.console import number_of
from hftune.core.registry import named
from hftune.data.arrow import lengths
from hftune.data.sampling import PACINGS, Pacing
from hftune.data.sampling.curriculum_stages import CurriculumStages
from hftune.data.sampling.row_sampler import EpochPosition, RowSampler

DEFAULT_START = 0.2
DEFAULT_DURATION = 0.5
DEFAULT_STAGES = 3
DEFAULT_PATIENCE = 2
ROUNDING = 1e-9


class Curriculum(RowSampler):
    """An epoch of as many rows as there are, none before its turn.

    Rows that had their turn are dealt like cards: each that is known comes once before any comes
    again. Once all are known, an epoch has each row once.

    Args:
        difficulty: One a row, shape ``(N,)``; rows that are equally hard stand in random order.
        pacing: How the share of known rows grows; see :func:`known_share`.
        start: The share at the first step; 0.2 if None.
        duration: Share of the run after which all rows are known, in (0, 1]; 0.5 if None.
        stages: Of ``staged``; 3 if None.
        hardest_first: Begin with the hardest rows instead.
        patience: Evaluations without a better metric that end a stage, where time does not end it:
            the next stage begins with the next epoch. None where time does.
        seed: Of the order among equally hard rows.

    Attributes:
        ends: Steps at which a stage was over, by the metric.
    """

    def __init__(
        self,
        difficulty: NDArray[np.float64],
        *,
        pacing: Pacing = "linear",
        start: float | None = None,
        duration: float | None = None,
        stages: int | None = None,
        hardest_first: bool = False,
        patience: int | None = None,
        seed: int = 0,
    ) -> None:
        self.size = len(difficulty)
        self.pacing = pacing
        self.start = DEFAULT_START if start is None else start
        self.duration = DEFAULT_DURATION if duration is None else duration
        self.stages = DEFAULT_STAGES if stages is None else stages
        self.patience = patience
        self.ends: list[int] = []
        chance = np.random.default_rng(seed).permutation(self.size)
        self.order: list[int] = np.lexsort(
            (chance, -difficulty if hardest_first else difficulty)
        ).tolist()

    def known(self, done: int, total: int) -> int:
        """Return how many rows have had their turn.

        Args:
            done: Optimizer steps before this one.
            total: Those of the run.
        """
        if self.patience is not None:
            return -(-self.size * self.stage(done) // self.stages)
        passed = min(1.0, done / (self.duration * total))
        share = known_share(self.pacing, passed, self.start, self.stages)
        return min(self.size, max(1, math.ceil(self.size * share - ROUNDING)))

    def stage(self, done: int) -> int:
        """Return which stage it is after ``done`` steps, from 1, where the metric ends them."""
        return min(self.stages, 1 + sum(end <= done for end in self.ends))

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callback that ends the stages, if the metric does; see :class:`RowSampler`."""
        return [] if self.patience is None else [CurriculumStages(self)]

    def remarks(self, evaluations: int) -> list[str]:
        """Return a warning if the run ends before the last stage; see :class:`RowSampler`."""
        if self.patience is None or (needed := 1 + (self.stages - 1) * self.patience) < evaluations:
            return []
        return [
            f"data.curriculum: {self.stages} stages with patience {self.patience} last {needed} "
            "evaluations before the last one begins, and the run has "
            f"{number_of(evaluations, 'evaluation', 'evaluations')}"
        ]

    def rows(self, generator: torch.Generator, position: EpochPosition) -> list[int]:
        """Return the rows of an epoch, step after step; see :class:`RowSampler`."""
        chances = torch.rand(self.size, generator=generator, dtype=torch.float64).tolist()
        deck: list[int] = []
        drawn: list[int] = []
        dealt = 0
        for number, chance in enumerate(chances):
            if number % position.group == 0:
                done = position.epoch * position.steps
                if self.patience is None:  # else an epoch has one stage
                    done += number // position.group
                known = self.known(done, position.total)
                deck += self.order[dealt:known]
                dealt = known
            if not deck:
                deck = self.order[:dealt]
            card = int(chance * len(deck))
            deck[card], deck[-1] = deck[-1], deck[card]
            drawn.append(deck.pop())
        return drawn


def known_share(pacing: Pacing, passed: float, start: float, stages: int) -> float:
    """Return the share of the rows that are known, in (0, 1].

    Args:
        pacing: The function that it grows by, from :data:`PACINGS`; in their formulas ``x`` is
            ``passed`` and ``s`` is ``start``.
        passed: Share of the curriculum that is over, in [0, 1].
        start: The share at the beginning, but for stages, which begin with the first of them.
        stages: Number of stages.

    Example:
        >>> known_share("linear", 0.5, 0.5, 4), known_share("staged", 0.5, 0.5, 4)
        (0.75, 0.75)
    """
    share: float = named(PACINGS[pacing].target)(passed, start, stages)
    return share


def linear_pacing(passed: float, start: float, stages: int) -> float:
    """Return ``s + (1 - s) x``; see :func:`known_share`.

    Example:
        >>> [linear_pacing(passed, 0.5, 3) for passed in (0, 0.5, 1)]
        [0.5, 0.75, 1.0]
    """
    return start + (1 - start) * passed


def root_pacing(passed: float, start: float, stages: int) -> float:
    """Return ``sqrt(s^2 + (1 - s^2) x)``; see :func:`known_share`.

    Example:
        >>> [round(root_pacing(passed, 0.2, 3), 2) for passed in (0, 0.5, 1)]
        [0.2, 0.72, 1.0]
    """
    return math.sqrt(start**2 + (1 - start**2) * passed)


def exponential_pacing(passed: float, start: float, stages: int) -> float:
    """Return ``s^(1 - x)``; see :func:`known_share`.

    Example:
        >>> [round(exponential_pacing(passed, 0.2, 3), 2) for passed in (0, 0.5, 1)]
        [0.2, 0.45, 1.0]
    """
    return float(start ** (1 - passed))


def staged_pacing(passed: float, start: float, stages: int) -> float:
    """Return a share that grows in equal steps, from the first stage; see :func:`known_share`.

    Example:
        >>> [round(staged_pacing(passed, 0.2, 3), 2) for passed in (0, 0.5, 1)]
        [0.33, 0.67, 1.0]
    """
    return min(1.0, (math.floor(stages * passed + ROUNDING) + 1) / stages)


def length(tokens: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return the number of tokens of each row, shape ``(N,)``.

    Args:
        tokens: A list of token ids a row.
    """
    return lengths(tokens).astype(np.float64)


def rarity(tokens: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return how unlikely each row is if tokens are drawn by their frequency, shape ``(N,)``.

    ``-sum(log p)`` over the row's tokens, in nats, where ``p`` is a token's share of all tokens.

    Args:
        tokens: A list of token ids a row.
    """
    sizes = lengths(tokens)
    ids = np.asarray(pc.list_flatten(tokens), dtype=np.int64)
    counts = np.bincount(ids)
    surprise = -np.log(counts[ids] / len(ids))
    row = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(row, weights=surprise, minlength=len(sizes)).astype(np.float64)
