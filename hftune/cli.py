# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call the function of the same name, print.

Imports nothing heavy at the top, so that help and a mistake in a recipe answer at once.
"""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hftune import __version__
from hftune.core.errors import HftuneError, RecipeError

INTERRUPTED = 130

app = typer.Typer(
    name="hftune",
    help="Fine-tune Hugging Face models from short recipes.\n\n"
    "Start with `hftune train recipes/quickstart.yaml`, or `hftune check` on a recipe of your own.",
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
RunArgument = Annotated[Path, typer.Argument(help="A run folder, or a model folder inside one.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in this folder where it stopped.")
    ] = False,
    accelerate: Annotated[
        str | None,
        typer.Option(
            help="Launch through Accelerate: cpu, multi_cpu, single_gpu, multi_gpu, or a file."
        ),
    ] = None,
) -> None:
    """Fine-tune a model as a recipe says.

    The run folder (runs/NAME, or training.output_dir) holds the resolved recipe, the log, metrics,
    plots, checkpoints, and the model.

    Examples:
        hftune train recipes/quickstart.yaml

        hftune train mine.yaml method.r=16 training.num_train_epochs=5

        hftune train runs/mine --resume

        hftune train mine.yaml --accelerate multi_gpu
    """
    loaded = _load(recipe, overrides, resume=resume)
    if accelerate is not None:
        _launch(accelerate, [str(recipe), *(overrides or []), *(["--resume"] if resume else [])])
    _verb("train")(loaded, resume=resume)


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Validate a recipe and its data without training.

    Prints class counts, lengths, the share cut, three examples with the trained tokens marked, and
    an estimate of the memory that training takes.
    """
    loaded = _load(recipe, overrides)
    _verb("check")(loaded)


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[str, typer.Argument(help="Rows with labels: file, glob, folder or Hub id.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 32,
    output: Annotated[
        Path | None, typer.Option(help="Write the metrics here as JSON, too.")
    ] = None,
) -> None:
    """Measure a finished run on any data."""
    _verb("evaluate")(run, data, batch_size=batch_size, output=output)


@app.command()
def predict(
    run: RunArgument,
    data: Annotated[str, typer.Argument(help="Rows to predict: file, glob, folder or Hub id.")],
    output: Annotated[Path, typer.Argument(help="Where the rows go, with predictions: .jsonl.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 32,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of a generated text, in tokens.")
    ] = 64,
) -> None:
    """Predict a file with a finished run: labels and scores, or generated text."""
    _verb("predict")(run, data, output, batch_size=batch_size, max_new_tokens=max_new_tokens)


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="A run, an adapter or a model: folder, Hub id or demo:smollm2.")
    ],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer, in tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1: surer, above: bolder; 0: always the likeliest.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this share.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the drawing.")] = None,
) -> None:
    """Talk to a fine-tuned or pretrained language model.

    What is not given is as the model's generation config has it. /help lists the commands; Ctrl-C
    stops an answer, Ctrl-D leaves. Lines from a pipe are answered one after the other.

    Examples:
        hftune chat runs/mine

        hftune chat demo:smollm2 --temperature 0.7 --seed 1

        hftune chat runs/mine < questions.txt > answers.txt
    """
    options = {"temperature": temperature, "top_p": top_p, "seed": seed}
    _verb("chat")(model, system=system, max_new_tokens=max_new_tokens, **options)


@app.command()
def init(
    data: Annotated[
        str | None, typer.Argument(help="Your rows: file, glob, folder or Hub id.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Guessed from the rows if absent.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder or demo model.")] = None,
    method: Annotated[str | None, typer.Option(help="What trains; lora if absent.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="ROLE=COLUMN, as in label=team; repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The recipe; named after the data if absent.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the guesses, ask nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a commented recipe for your own rows.

    Looks at the rows, guesses task and columns, and says why. In a terminal it asks, with the guess
    as the default; elsewhere, or with --yes, the guesses are taken.

    Examples:
        hftune init tickets.csv

        hftune init tickets.csv --column text=body --column label=team --yes

        hftune init chats.jsonl --model Qwen/Qwen3-0.6B --output chats.yaml
    """
    pairs = [item.partition("=") for item in column or ()]
    if wrong := [role + sign for role, sign, name in pairs if not (role and name)]:
        raise HftuneError(f"--column: {wrong[0]!r}: expected ROLE=COLUMN, as in label=team")
    options = {"task": task, "model": model, "method": method, "output": output, "force": force}
    columns = {role: name for role, _, name in pairs}
    _verb("init")(data, columns=columns, ask=not yes and sys.stdin.isatty(), **options)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="tasks, methods, losses, optimizers, schedules, recipes, accelerate, models, data."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what a recipe can name, one line each.

    In brackets: the tasks it goes with, where that is not all of them, and the package it needs.

    Examples:
        hftune list

        hftune list methods

        hftune list optimizers --json
    """
    from hftune.commands.list import list_, listing

    entries = list_(kind)
    _print(entries if as_json else listing(entries))


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option(help="Write it to this file and print nothing.")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, for editors and other programs.

    Examples:
        hftune schema --output schema.json
    """
    from hftune.commands.schema import schema, schema_text

    exported = schema(output)
    if output is None:
        print(schema_text(exported), end="")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look whether this machine is ready: versions, devices, extras, folders, the Hub.

    Changes nothing. The exit code is 1 if something that hftune needs is broken.
    """
    from hftune.commands.doctor import doctor, report

    _quieten()
    findings = doctor()
    _print(findings if as_json else report(findings))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; errors that a user can act on are printed without a traceback."""
    with _plain_errors():
        app(standalone_mode=True)


def _load(path: Path, overrides: list[str] | None, *, resume: bool = False) -> Any:
    from hftune.recipe.recipe import Recipe

    if resume and overrides:
        raise HftuneError(
            "--resume takes the recipe as it was", hint="leave out " + " ".join(overrides)
        )
    if (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    loaded = Recipe.load(path, overrides or ())
    if loaded.data.path is None:
        raise RecipeError(
            [f"{path}: data.path: missing"],
            hint="a run on rows handed over in Python goes on there: "
            "hftune.train(hftune.load(RUN).recipe, train_dataset=..., resume=True)",
        )
    return loaded


def _print(answer: Any) -> None:
    """Print text, or records as JSON."""
    if not isinstance(answer, str):
        import dataclasses
        import json

        answer = json.dumps(answer, default=dataclasses.asdict, indent=2, ensure_ascii=False)
    print(answer)


def _verb(name: str) -> Callable[..., Any]:
    """Import a verb's function; from here on it costs what torch costs."""
    _quieten()
    from importlib import import_module

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return getattr(import_module(f"hftune.commands.{name}"), name)  # type: ignore[no-any-return]


def _quieten() -> None:
    """Keep what libraries say at import and at work out of hftune's own words."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate|datasets)\.")
    for chatty in ("torch.distributed", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def _launch(config: str, arguments: list[str]) -> None:
    """Become ``accelerate launch``."""
    from hftune.core.shipped import accelerate_config

    program = shutil.which("accelerate", path=os.path.dirname(sys.executable)) or "accelerate"
    command = [program, "launch", "--config_file", str(accelerate_config(config))]
    os.execvp(program, [*command, "-m", "hftune", "train", *arguments])


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except HftuneError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error.message}", file=sys.stderr)
            if error.hint:
                print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
