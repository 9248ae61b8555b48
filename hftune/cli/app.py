# SPDX-License-Identifier: Apache-2.0
"""The Typer application, and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from hftune import __version__

app = typer.Typer(
    name="hftune",
    help="Fine-tune Hugging Face models from short recipes.\n\n"
    "Start with `hftune init tickets.csv`, which writes a recipe for your own rows; then `check`, "
    "`train` and `predict`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    Path, typer.Argument(help="A recipe (.yaml), or a run folder to repeat its recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values laid over the recipe: method.r=16 training.learning_rate=1e-4"),
]
TrustMetrics = Annotated[
    bool,
    typer.Option(
        "--trust-metrics", help="Load the recipe's evaluation.metrics; their scripts run here."
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, or a model folder inside one.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
