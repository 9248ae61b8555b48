# SPDX-License-Identifier: Apache-2.0
"""Parts that rows of PEFT types share; the rows are in :mod:`.peft_types`."""

from collections.abc import Mapping
from typing import Any

from hftune.core.registry import ABOVE_ZERO, AT_LEAST_ONE, FRACTION, MethodRow, Schema
from hftune.core.rules import Rule, option

PROMPTS = "trains what stands before a row's tokens, and no weight of the base"
#: Ranges of options that many of PEFT's classes have.
PEFT_RANGES: dict[str, Schema] = {
    "r": AT_LEAST_ONE,
    "alpha": ABOVE_ZERO,
    "lora_alpha": ABOVE_ZERO,
    "lora_dropout": FRACTION,
}
#: Rules about options of ``peft.LoraConfig``.
LORA_RULES = (
    Rule(
        "method.init_lora_weights",
        "eva, corda and loftq compute their start from data or a second model; use the Python API",
        lambda s: option(s, "init_lora_weights") in ("eva", "corda", "loftq"),
    ),
)


def adapter(
    summary: str,
    target: str = "hftune.methods.peft:Peft",
    ranges: Mapping[str, Schema] | None = None,
    **facts: Any,
) -> MethodRow:
    """Return the row of a PEFT type: an adapter beside its base.

    Args:
        summary: One line for people.
        target: The class of the method, as ``package.module:Class``.
        ranges: Ranges of its own options.
        facts: Further fields of the row.

    Example:
        >>> adapter("Two vectors.", learning_rate=4e-3).learning_rate
        0.004
    """
    return MethodRow(
        target=target,
        summary=summary,
        saves="adapter",
        trains="adapter",
        ranges={**PEFT_RANGES, **(ranges or {})},
        **facts,
    )


def one_of(*names: str) -> Schema:
    """Return the schema of an option whose class would take any text beside the names.

    Example:
        >>> one_of("MLP", "LSTM")
        {'anyOf': [{'enum': ['MLP', 'LSTM'], 'type': 'string'}]}
    """
    return {"anyOf": [{"enum": list(names), "type": "string"}]}
