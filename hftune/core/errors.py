# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can fix; the command line prints them without a traceback."""


class HftuneError(Exception):
    """A mistake that is found before any weight is loaded.

    Args:
        message: The expected and the given value.
        hint: A remedy, shown on a line of its own.

    Example:
        >>> print(HftuneError("no such file: a.csv", hint="did you mean b.csv?"))
        no such file: a.csv
        did you mean b.csv?
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class RunError(HftuneError):
    """A failure that cannot be foreseen before a run starts."""

    exit_code = 1


class RecipeError(HftuneError):
    """A recipe that cannot run as written.

    Args:
        problems: One line each: ``file:line: key: given value, allowed values``.
        hint: A remedy.

    Example:
        >>> print(RecipeError(["a.yaml:2: epochs: unknown key", "a.yaml:3: lr: unknown key"]))
        a.yaml:2: epochs: unknown key
        a.yaml:3: lr: unknown key
    """

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if the message is empty.

    Example:
        >>> first_line(OSError("no space left")), first_line(ConnectionError())
        ('no space left', 'ConnectionError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
