# SPDX-License-Identifier: Apache-2.0
"""Commands that show available names, the recipe schema and the state of the machine."""

from pathlib import Path
from typing import Annotated

import typer

from hftune.cli.app import app
from hftune.cli.terminal import prepare_libraries, show
from hftune.core.errors import HftuneError


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="tasks, methods, losses, optimizers, schedules, initializations, samplings, "
            "difficulties, pacings, regularizations, recipes, accelerate, models, data."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="With schedules or pacings: draw them into this picture.")
    ] = None,
) -> None:
    """List what a recipe can name, one line each.

    In brackets: the tasks it goes with, where that is not all of them, and the package it needs.

    For example:

    ```
    hftune list
    hftune list methods
    hftune list optimizers --json
    hftune list schedules --plot schedules.png
    hftune list pacings --plot pacings.png
    ```
    """
    from hftune.commands.list import count_names, list_, listing, plot_pacings, plot_schedules

    entries = list_(kind)
    if plot is not None:
        drawn = {"schedules": plot_schedules, "pacings": plot_pacings}
        if kind not in drawn:
            raise HftuneError(
                f"--plot: it draws {' or '.join(drawn)}", hint="hftune list schedules --plot ..."
            )
        prepare_libraries()
        drawn[kind](plot)
    lines = listing(entries) if kind else f"{listing(entries)}\n\n{count_names(entries)}"
    show(entries if as_json else lines)


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option(help="Write it to this file and print nothing.")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, for editors and other programs.

    For example:

    ```
    hftune schema --output schema.json
    ```
    """
    from hftune.commands.schema import schema, schema_text

    exported = schema(output)
    if output is None:
        print(schema_text(exported), end="")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    empty_cache: Annotated[
        bool,
        typer.Option(
            "--empty-cache", help="First remove from hftune's cache all that no run uses."
        ),
    ] = False,
) -> None:
    """Look whether this machine is ready: versions, devices, extras, folders, cache, the Hub.

    Changes nothing but with --empty-cache. The exit code is 1 if something that hftune needs is
    broken.

    For example:

    ```
    hftune doctor
    hftune doctor --empty-cache
    ```
    """
    from hftune.commands.doctor import doctor, report

    prepare_libraries()
    findings = doctor(empty_cache=empty_cache)
    show(findings if as_json else report(findings))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
