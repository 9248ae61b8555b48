# SPDX-License-Identifier: Apache-2.0
"""The command line: parse arguments, call the function of the same name, print its result.

Imports nothing heavy at the top, so that help and errors in a recipe appear at once.
"""

from hftune.cli import recipes, runs, tools  # in the order of the help
from hftune.cli.app import app
from hftune.cli.terminal import plain_errors

__all__ = ["app", "main", "recipes", "runs", "tools"]


def main() -> None:
    """Run the command line; errors that a user can act on are printed without a traceback."""
    with plain_errors():
        app(standalone_mode=True)
