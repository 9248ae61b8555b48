# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call the function of the same name, print.

Imports nothing heavy at the top, so that help and a mistake in a recipe answer at once.
"""

import logging
import os
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
            help="Launch through Accelerate: cpu, multi_cpu, single_gpu, multi_gpu, multi_node, "
            "fsdp2, fsdp2_qlora, deepspeed_zero2, deepspeed_zero3, or a file."
        ),
    ] = None,
    mixed_precision: Annotated[
        str | None,
        typer.Option(help="With --accelerate, in place of its config's: no, bf16, fp16, fp8."),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(min=1, help="With --accelerate, in place of its config's, one a GPU."),
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

        hftune train mine.yaml --accelerate fsdp2 --num-processes 8 --mixed-precision bf16
    """
    overrides = [*(overrides or []), *_said_of_precision(mixed_precision, accelerate, resume)]
    loaded = _load(recipe, overrides, resume=resume)
    if accelerate is not None:
        arguments = [str(recipe), *overrides, *(["--resume"] if resume else [])]
        _launch(accelerate, arguments, mixed_precision, num_processes)
    if num_processes is not None:
        raise HftuneError("--num-processes: Accelerate starts them; say --accelerate, too")
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


def _verb(name: str) -> Callable[..., Any]:
    """Import a verb's function; from here on it costs what torch costs."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate|datasets)\.")
    from importlib import import_module

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for chatty in ("torch.distributed", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return getattr(import_module(f"hftune.commands.{name}"), name)  # type: ignore[no-any-return]


def _said_of_precision(
    mixed_precision: str | None, accelerate: str | None, resume: bool
) -> list[str]:
    """Check ``--mixed-precision`` and return what the recipe must say of it."""
    from hftune.core.launch import PRECISIONS, precision_overrides

    if mixed_precision is None:
        return []
    if mixed_precision not in PRECISIONS:
        raise HftuneError(
            f"--mixed-precision: no {mixed_precision!r}", hint=f"known: {', '.join(PRECISIONS)}"
        )
    if accelerate is None:
        field = (
            "" if mixed_precision == "fp8" else ", or training.bf16 or training.fp16 in the recipe"
        )
        raise HftuneError(
            "--mixed-precision: it goes with --accelerate",
            hint=f"--accelerate single_gpu{field}",
        )
    if resume and mixed_precision != "fp8":
        raise HftuneError(
            "--resume takes the precision as it was", hint="leave out --mixed-precision"
        )
    return precision_overrides(mixed_precision)


def _launch(
    config: str, arguments: list[str], mixed_precision: str | None, num_processes: int | None
) -> None:
    """Become ``accelerate launch``."""
    from hftune.core.launch import launch_command

    command = launch_command(
        config, arguments, mixed_precision=mixed_precision, num_processes=num_processes
    )
    os.execvp(command[0], command)


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
