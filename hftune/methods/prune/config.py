# SPDX-License-Identifier: Apache-2.0
"""Options of pruning, and checks that they do not contradict each other."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from hftune.core.errors import HftuneError
from hftune.methods.prune.schedule import Sparsities

Structure = Literal["unstructured", "2:4", "ffn", "heads"]
TWO_OF_FOUR = 0.5


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Options of a recipe. Steps below 1 are shares of the run, as in Transformers.

    Args:
        sparsity: Share of the prunable weights, or of each layer's units, that is gone in the end.
        structure: Single weights, two of each four, or whole neurons or heads, which are cut out.
        scope: Whether single weights are compared over all layers or within each.
        importance: What the least important ones are told by.
        schedule: Whether all is pruned at one step, or more and more as a cubic.
        begin_step: Steps before the first pruning.
        initial_sparsity: The share at the first of several prunings.
        end_step: Steps before the last of several; half of the run if absent.
        frequency: Steps from one pruning to the next; a tenth of the way if absent.
        target_modules: Linear layers to prune; those of the model's stacks of layers if absent.
        exclude_modules: Linear layers to leave whole.

    Example:
        >>> PruneConfig(structure="heads").cuts
        True
        >>> PruneConfig(schedule="cubic").sparsities(100).end
        50
    """

    sparsity: Annotated[float, Gt(0), Lt(1)] = field(
        default=0.5,
        metadata={
            "help": "Share of the prunable weights, or of each layer's neurons "
            "or heads, that is gone in the end."
        },
    )
    structure: Structure = field(
        default="unstructured",
        metadata={
            "help": "Single weights; two of each four; or feed-forward neurons or attention "
            "heads, which are cut out of the saved model."
        },
    )
    scope: Literal["global", "layer"] | None = field(
        default=None,
        metadata={
            "help": "Whether single weights are compared over all layers, as "
            "by default, or within each."
        },
    )
    importance: Literal["magnitude", "taylor"] = field(
        default="magnitude",
        metadata={
            "help": "Size of the weight, or what the loss would change "
            "by without it, to first order."
        },
    )
    schedule: Literal["once", "cubic"] = field(
        default="once", metadata={"help": "All at one step, or more and more as a cubic."}
    )
    begin_step: Annotated[float, Ge(0)] = field(
        default=0, metadata={"help": "Steps before the first pruning; below 1, a share of the run."}
    )
    initial_sparsity: Annotated[float, Ge(0), Lt(1)] | None = field(
        default=None, metadata={"help": "cubic: the share at the first pruning; 0 if absent."}
    )
    end_step: Annotated[float, Gt(0)] | None = field(
        default=None,
        metadata={
            "help": "cubic: steps before the last pruning; below 1, a share of "
            "the run; half of it if absent."
        },
    )
    frequency: Annotated[int, Ge(1)] | None = field(
        default=None,
        metadata={
            "help": "cubic: steps from one pruning to the next; a tenth of the way if absent."
        },
    )
    target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers to prune; those of the stacks of layers if absent."},
    )
    exclude_modules: list[str] | None = field(
        default=None, metadata={"help": "Linear layers to leave whole."}
    )

    def __post_init__(self) -> None:
        """Refuse options that contradict each other or have no effect.

        Raises:
            HftuneError: Names the option.
        """
        given = {key: value for key, value in asdict(self).items() if value is not None}
        if self.structure != "unstructured" and self.scope == "global":
            raise HftuneError(
                f"method.scope: with structure {self.structure} every layer is pruned alike"
            )
        if self.structure == "2:4" and (self.sparsity != TWO_OF_FOUR or self.schedule != "once"):
            raise HftuneError("method.structure: 2:4 is a sparsity of 0.5, reached at once")
        for key in ("initial_sparsity", "end_step", "frequency"):
            if self.schedule == "once" and key in given:
                raise HftuneError(f"method.{key}: it has an effect only with schedule: cubic")
        if (self.initial_sparsity or 0) >= self.sparsity:
            raise HftuneError(
                f"method.initial_sparsity: {self.initial_sparsity} does not rise to {self.sparsity}"
            )
        for key in ("target_modules", "exclude_modules"):
            if self.cuts and key in given:
                raise HftuneError(
                    f"method.{key}: with structure {self.structure} every layer loses the same "
                    "number, since the config says one size for all"
                )
        if self.importance == "taylor" and self.begin_step == 0:
            raise HftuneError(
                "method.begin_step: taylor needs gradients before the first pruning",
                hint="begin_step: 0.1 gathers them over a tenth of the run",
            )

    @property
    def cuts(self) -> bool:
        """Whether whole units go, so that shapes get smaller."""
        return self.structure in ("ffn", "heads")

    def sparsities(self, total: int) -> Sparsities:
        """Return the prunings of a run of ``total`` steps."""
        if self.schedule == "once":
            return Sparsities.once(self.sparsity, self.begin_step, total)
        return Sparsities.cubic(
            self.sparsity,
            self.initial_sparsity or 0.0,
            self.begin_step,
            self.end_step,
            self.frequency,
            total,
        )
