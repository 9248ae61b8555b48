# SPDX-License-Identifier: Apache-2.0
"""The fields of diff pruning; their names are PEFT's and the paper's where those have one."""

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftConfig

from hftune.methods.peft_tuners import OwnPeftType


@dataclass
class DiffPruningConfig(PeftConfig):
    """Options of diff pruning: the modules that train, and how and when they become sparse.

    The phases are shares of the run: gates and penalty first, then the projection at once, then
    what is left of the run with a fixed mask.

    Example:
        >>> DiffPruningConfig().penalty_weight, DiffPruningConfig(mode="l1").penalty_weight
        (30.0, 0.1)
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules whose weights get a difference: names or a regular expression; if "
            "absent every linear, convolution and embedding of the trunk that is not shared."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out: names or a regular expression."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that train whole, such as a new head."}
    )
    include_bias: bool = field(
        default=True, metadata={"help": "Whether biases of the modules get a difference too."}
    )
    include_norm: bool = field(
        default=True,
        metadata={"help": "Whether norms do, where target_modules is absent."},
    )
    target_sparsity: float = field(
        default=0.995,
        metadata={"help": "Share of the difference that is zero in the end, counted exactly."},
    )
    mode: Literal["l0", "l1"] = field(
        default="l0",
        metadata={"help": "l0: hard-concrete gates, as the paper; l1: a penalty on magnitudes."},
    )
    structured: bool = field(
        default=True,
        metadata={"help": "A gate for each whole weight matrix or bias beside one for each entry."},
    )
    projection_ratio: float = field(
        default=0.5,
        metadata={"help": "Share of the steps before the projection; the rest has a fixed mask."},
    )
    penalty_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the penalty: l0 counts the expected share of open gates, l1 the "
            "mean magnitude. 30 for l0 and 0.1 for l1 if absent."
        },
    )
    penalty_schedule: Literal["exponential", "constant"] = field(
        default="exponential",
        metadata={
            "help": "exponential: the l0 penalty counts what is above a share that falls from 1 to "
            "1 - target_sparsity; constant: all of it, as the paper."
        },
    )
    alpha_init: float = field(default=5.0, metadata={"help": "The gates' log alpha at the start."})
    gate_lr_ratio: float | None = field(
        default=None,
        metadata={
            "help": "How much faster gates learn than weights; if absent so much that a gate can "
            "close several times over before the projection."
        },
    )
    finishing_lr_ratio: float = field(
        default=10.0,
        metadata={"help": "How much faster the few weights learn after the projection."},
    )
    finished: bool = field(
        default=False, metadata={"help": "Whether the difference is stored sparse; set by itself."}
    )
    base_fingerprint: dict[str, str] | None = field(
        default=None, metadata={"help": "Some numbers of the base's weights; set by itself."}
    )

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A value is out of its range.
        """
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = OwnPeftType["DIFF_PRUNING"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if not 0 < self.target_sparsity < 1:
            raise ValueError(f"target_sparsity must be between 0 and 1, got {self.target_sparsity}")
        if not 0 < self.projection_ratio <= 1:
            raise ValueError(
                f"projection_ratio must be above 0 and at most 1, got {self.projection_ratio}"
            )
        if self.penalty_weight is None:
            self.penalty_weight = 30.0 if self.mode == "l0" else 0.1
        if self.penalty_weight < 0:
            raise ValueError(f"penalty_weight must not be negative, got {self.penalty_weight}")
        for name in ("gate_lr_ratio", "finishing_lr_ratio"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
