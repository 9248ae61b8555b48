# SPDX-License-Identifier: Apache-2.0
"""Tuners of our own among PEFT's: the types that hftune adds, and how PEFT learns of them.

``peft.utils.register_peft_method`` takes only names that PEFT's own enumeration holds. What it then
does is to fill three dictionaries, and those can be filled from outside. This is no documented
interface: pyproject bounds PEFT's version, and tests/methods/test_peft_tuners.py holds it.
"""

from enum import StrEnum
from typing import Any, cast

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner

from hftune.methods.tuners import TUNERS

#: Types that PEFT does not know. Members equal the text in ``adapter_config.json``.
OwnPeftType: type[StrEnum] = cast(Any, StrEnum)(
    "OwnPeftType", {name.upper(): name.upper() for name in TUNERS}, module=__name__
)


def register(kind: StrEnum, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Tell PEFT of a tuner; doing so again changes nothing.

    Args:
        kind: Its type.
        config: Its config class.
        tuner: Its model class, whose ``prefix`` starts the names of its parameters.

    Raises:
        RuntimeError: PEFT has another tuner of that name or with that prefix.
    """
    entries: tuple[tuple[dict[Any, Any], Any], ...] = (
        (PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        (PEFT_TYPE_TO_PREFIX_MAPPING, tuner.prefix),
    )
    if any(mapping.get(kind, value) != value for mapping, value in entries):
        raise RuntimeError(f"PEFT has another tuner of the type {kind}")
    others: dict[Any, str] = dict(PEFT_TYPE_TO_PREFIX_MAPPING)
    others.pop(kind, None)
    if tuner.prefix in others.values():
        raise RuntimeError(f"PEFT has another tuner whose parameters start with {tuner.prefix}")
    for mapping, value in entries:
        mapping[kind] = value


def register_tuners() -> None:
    """Tell PEFT of every tuner of ours, so that it can read their adapters."""
    for row in TUNERS.values():
        row.resolve_options()  # its package registers it
