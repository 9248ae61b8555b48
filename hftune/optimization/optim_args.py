# SPDX-License-Identifier: Apache-2.0
"""``training.optim_args``: text as Transformers has it, such as ``momentum=0.9,nesterov=true``."""

from typing import Any


def pairs_of(text: str | None) -> dict[str, str]:
    """Return name -> value as Transformers splits them.

    Example:
        >>> pairs_of("momentum=0.9, nesterov=true")
        {'momentum': '0.9', 'nesterov': 'true'}
    """
    pairs = text.replace(" ", "").split(",") if text else []
    return dict(pair.partition("=")[::2] for pair in pairs)


def is_malformed(text: str) -> bool:
    """Tell whether Transformers could not read it."""
    pairs = text.replace(" ", "").split(",") if text else []
    return any(not all(pair.split("=")) or pair.count("=") != 1 for pair in pairs)


def value_of(text: str) -> Any:
    """Return a number, a truth value, or else the text.

    Example:
        >>> value_of("1e-6"), value_of("3"), value_of("True"), value_of("std")
        (1e-06, 3, True, 'std')
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def values_of(text: str | None) -> dict[str, Any]:
    """Return name -> value of a whole text."""
    return {name: value_of(value) for name, value in pairs_of(text).items()}
