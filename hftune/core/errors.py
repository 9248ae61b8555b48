# SPDX-License-Identifier: Apache-2.0
"""The errors that a user can act on; the command line prints them without a traceback."""


class HftuneError(Exception):
    """A mistake that is known before any weight is loaded.

    Args:
        message: What was expected and what came.
        hint: What to do about it, shown on a line of its own.

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
    """What cannot be known before a run starts."""

    exit_code = 1


class RecipeError(HftuneError):
    """A recipe that cannot run as written.

    Args:
        problems: One line each: ``file:line: key: what came, what is allowed``.
        hint: What to do about it.
    """

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing.

    Example:
        >>> first_line(OSError("no space left")), first_line(ConnectionError())
        ('no space left', 'ConnectionError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
