# SPDX-License-Identifier: Apache-2.0
"""Easy rows first: each optimizer step draws from the easiest rows, of which it takes ever more.

Sources: Bengio et al., "Curriculum Learning", ICML 2009; Platanios et al., "Competence-based
Curriculum Learning for Neural Machine Translation", 2019, arXiv:1903.09848 (rarity; linear and root
pacing); Hacohen and Weinshall, "On The Power of Curriculum Learning in Training Deep Networks",
2019, arXiv:1904.03626 (exponential pacing, the hardest first, and the loss of another model).
"""

import math
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from hftune.data import Pacing
from hftune.data.arrow import lengths
from hftune.data.sampling.row_sampler import Draw, Place

DEFAULT_START = 0.2
DEFAULT_DURATION = 0.5
DEFAULT_STAGES = 3
DEFAULT_PATIENCE = 2
ROUNDING = 1e-9


class Curriculum(Draw):
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

    def rows(self, generator: torch.Generator, place: Place) -> list[int]:
        """Return the rows of an epoch, step after step; see :class:`Draw`."""
        chances = torch.rand(self.size, generator=generator, dtype=torch.float64).tolist()
        deck: list[int] = []
        drawn: list[int] = []
        dealt = 0
        for number, chance in enumerate(chances):
            if number % place.group == 0:
                done = place.epoch * place.steps
                if self.patience is None:  # else an epoch has one stage
                    done += number // place.group
                known = self.known(done, place.total)
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

    With ``x`` = ``passed`` and ``s`` = ``start``: ``linear`` ``s + (1 - s) x``; ``root``
    ``sqrt(s^2 + (1 - s^2) x)``; ``exponential`` ``s^(1 - x)``; ``staged`` in equal steps.

    Args:
        pacing: Which of them.
        passed: Share of the curriculum that is over, in [0, 1].
        start: The share at the beginning, but for ``staged``, which begins with one stage.
        stages: Number of steps of ``staged``.
    """
    if pacing == "linear":
        return start + (1 - start) * passed
    if pacing == "root":
        return math.sqrt(start**2 + (1 - start**2) * passed)
    if pacing == "exponential":
        return float(start ** (1 - passed))
    return min(1.0, (math.floor(stages * passed + ROUNDING) + 1) / stages)


def flat_stretches(
    values: Iterable[tuple[int, float]], patience: int, *, greater_is_better: bool
) -> list[int]:
    """Return the steps at which a metric had not been better for ``patience`` evaluations.

    After each of them the count begins anew; the best value stays.

    Args:
        values: Step and metric of each evaluation, in order.
        patience: Evaluations in a row, each no better than the best before.
        greater_is_better: Which way is better.
    """
    best, flat, ends = -math.inf, 0, []
    for step, value in values:
        score = value if greater_is_better else -value
        flat = 0 if score > best else flat + 1
        best = max(best, score)
        if flat == patience:
            ends.append(step)
            flat = 0
    return ends


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
