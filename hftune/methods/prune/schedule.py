# SPDX-License-Identifier: Apache-2.0
"""The sparsity by optimizer step: reached at once, or rising as a cubic.

Zhu and Gupta, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression",
2017, arXiv:1710.01878, equation 1.
"""

import math
from dataclasses import dataclass

from hftune.core.errors import HftuneError

#: What a rising schedule does where the recipe leaves it open.
END_STEP = 0.5
PRUNINGS = 10


@dataclass(frozen=True, kw_only=True)
class Sparsities:
    """The prunings of a run, counted in optimizer steps that are done.

    Attributes:
        final: Share of the weights, or of the units of each layer, that is gone in the end.
        initial: The share at ``begin``, where it rises.
        begin: The first pruning.
        end: The last one; equal to ``begin`` where there is only one.
        frequency: Steps between prunings.

    Example:
        >>> sparsities = Sparsities(final=0.8, begin=0, end=10, frequency=5)
        >>> [round(sparsities.reached(step), 3) for step in (0, 4, 5, 10)]
        [0.0, 0.0, 0.7, 0.8]
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    end: int = 0
    frequency: int = 1

    @classmethod
    def once(cls, final: float, begin_step: float, total: int) -> "Sparsities":
        """Prune all at one step; a number below 1 is a share of the run.

        Raises:
            HftuneError: The run has no step after it.
        """
        begin = as_steps(begin_step, total)
        _check_inside("begin_step", begin, total)
        return cls(final=final, begin=begin, end=begin)

    @classmethod
    def cubic(
        cls,
        final: float,
        initial: float,
        begin_step: float,
        end_step: float | None,
        frequency: int | None,
        total: int,
    ) -> "Sparsities":
        """Prune again and again, much at first; numbers below 1 are shares of the run.

        Raises:
            HftuneError: The run has no step after the last pruning, or the steps do not rise.
        """
        begin = as_steps(begin_step, total)
        end = as_steps(END_STEP if end_step is None else end_step, total)
        _check_inside("end_step", end, total)
        if begin >= end:
            raise HftuneError(
                f"method.begin_step: the sparsity rises from step {begin} to step {end}, which "
                "leaves nothing between",
                hint="schedule: once prunes at one step",
            )
        every = max((end - begin) // PRUNINGS, 1) if frequency is None else frequency
        if every > end - begin:
            raise HftuneError(
                f"method.frequency: {every} steps are more than the {end - begin} from begin_step "
                "to end_step"
            )
        return cls(final=final, initial=initial, begin=begin, end=end, frequency=every)

    def prunes_at(self, step: int) -> bool:
        """Whether more is pruned when ``step`` steps are done; in any case at ``end``."""
        inside = self.begin <= step <= self.end
        return inside and ((step - self.begin) % self.frequency == 0 or step == self.end)

    def at(self, step: int) -> float:
        """Return the share that a pruning after ``step`` steps leaves: ``s_t`` of the paper."""
        if step >= self.end:
            return self.final
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**3

    def reached(self, step: int) -> float:
        """Return the share that is gone after ``step`` steps."""
        if step < self.begin:
            return 0.0
        since = (step - self.begin) % self.frequency
        return self.at(step if step >= self.end else step - since)


def as_steps(given: float, total: int) -> int:
    """Return steps as Transformers counts them: a number below 1 is a share, rounded up.

    Example:
        >>> as_steps(0.25, 10), as_steps(4, 10)
        (3, 4)
    """
    return math.ceil(given * total) if 0 < given < 1 else int(given)


def _check_inside(key: str, step: int, total: int) -> None:
    if step >= total:
        raise HftuneError(
            f"method.{key}: pruning after step {step} leaves nothing to train in a run of {total} "
            "steps",
            hint=f"{key}: {total // 2} leaves half of them",
        )
