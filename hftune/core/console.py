# SPDX-License-Identifier: Apache-2.0
"""Messages for the user: on standard error, from the main process only."""

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> "Console":
    """Return the console for all messages of hftune; it is silent on ranks other than 0."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=not is_main_process())


def number_of(number: int, one: str, more: str) -> str:
    """Return a number with its words, in the singular or the plural.

    Example:
        >>> number_of(1, "row is", "rows are"), number_of(2, "row is", "rows are")
        ('1 row is', '2 rows are')
    """
    return f"{number} {one if number == 1 else more}"


def is_main_process() -> bool:
    """Tell whether this process is rank 0 or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line for the user."""
    console().print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning for the user."""
    console().print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)
