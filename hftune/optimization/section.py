# SPDX-License-Identifier: Apache-2.0
"""Keys of ``training:`` that hftune adds to ``TrainingArguments``."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """One of the optimizer's parameter groups."""

    params: str | list[str]
    lr: Annotated[float, Ge(0)] | None = None
    weight_decay: Annotated[float, Ge(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class LearningRateScaling:
    """How the rate follows from the number of rows of an optimizer step."""

    rule: Literal["linear", "sqrt"]
    batch_size: Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class OwnTraining:
    """Keys of ``training`` that ``TrainingArguments`` does not have."""

    layer_decay: Annotated[float, Gt(0), Le(1)] | None = field(
        default=None,
        metadata={"help": "What the rate of each layer is of that of the one above it."},
    )
    param_groups: list[ParamGroup] | None = field(
        default=None,
        metadata={
            "help": "Parameter groups of the optimizer: params is a regular expression for whole "
            "names, or a list of names or their last parts; lr and weight_decay."
        },
    )
    loraplus_lr_ratio: Annotated[float, Ge(1)] | None = field(
        default=None,
        metadata={"help": "LoRA+: the rate of LoRA's B is so many times that of A."},
    )
    loraplus_lr_embedding: Annotated[float, Gt(0)] | None = field(
        default=None, metadata={"help": "LoRA+: the rate of LoRA on embeddings; 1e-6 if absent."}
    )
    learning_rate_scaling: LearningRateScaling | None = field(
        default=None,
        metadata={
            "help": "learning_rate is right for batch_size rows a step; with more or fewer it is "
            "multiplied by their ratio (linear) or its square root (sqrt)."
        },
    )
    max_grad_value: Annotated[float, Gt(0)] | None = field(
        default=None,
        metadata={"help": "Each component of the gradient is cut off at plus and minus this."},
    )
    early_stopping_patience: Annotated[int, Ge(1)] | None = field(
        default=None,
        metadata={
            "help": "End the run after so many evaluations in a row without a gain in "
            "metric_for_best_model."
        },
    )
    early_stopping_threshold: Annotated[float, Ge(0)] | None = field(
        default=None,
        metadata={"help": "A gain is more than this, in units of the metric; 0 if absent."},
    )
    log_grad_norms: Literal["layers", "groups"] | None = field(
        default=None,
        metadata={
            "help": "Log the norm of the gradient, before clipping, of each layer or parameter "
            "group."
        },
    )


#: Keys of ``training`` that TrainingArguments does not know.
OWN_TRAINING = tuple(item.name for item in fields(OwnTraining))
