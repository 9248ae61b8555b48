# SPDX-License-Identifier: Apache-2.0
"""Commands that read a recipe, and ``init``, the one that writes it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hftune.cli.app import Overrides, RecipeArgument, TrustMetrics, app
from hftune.cli.terminal import launch, load, named_columns, said_of_precision, say_next, verb
from hftune.core.errors import HftuneError


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

    For example:

    ```
    hftune init tickets.csv
    hftune init tickets.csv --column text=body --column label=team --yes
    hftune init chats.jsonl --model Qwen/Qwen3-0.6B --output chats.yaml
    ```
    """
    options = {"task": task, "model": model, "method": method, "output": output, "force": force}
    ask = not yes and sys.stdin.isatty()
    verb("init")(data, columns=named_columns(column or ()), ask=ask, **options)


@app.command()
def check(
    recipe: RecipeArgument, overrides: Overrides = None, trust_metrics: TrustMetrics = False
) -> None:
    """Validate a recipe and its data without training.

    Prints class counts, lengths, the share cut, three examples with the trained tokens marked, and
    an estimate of the memory that training takes.

    For example:

    ```
    hftune check mine.yaml
    hftune check mine.yaml data.max_length=128
    ```
    """
    loaded = load(recipe, overrides)
    verb("check")(loaded, metrics=loaded.evaluation.metrics if trust_metrics else None)
    say_next("train", recipe, *(overrides or []), *(["--trust-metrics"] if trust_metrics else []))


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
    trust_metrics: TrustMetrics = False,
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

    For example:

    ```
    hftune train recipes/quickstart.yaml
    hftune train mine.yaml method.r=16 training.num_train_epochs=5
    hftune train runs/mine --resume
    hftune train mine.yaml --accelerate multi_gpu
    hftune train mine.yaml --accelerate fsdp2 --num-processes 8 --mixed-precision bf16
    ```
    """
    overrides = [*(overrides or []), *said_of_precision(mixed_precision, accelerate, resume)]
    loaded = load(recipe, overrides, resume=resume)
    if accelerate is not None:
        switches = [("--resume", resume), ("--trust-metrics", trust_metrics)]
        given = [name for name, is_on in switches if is_on]
        launch(accelerate, [str(recipe), *overrides, *given], mixed_precision, num_processes)
    if num_processes is not None:
        raise HftuneError("--num-processes: Accelerate starts them; say --accelerate, too")
    metrics = loaded.evaluation.metrics if trust_metrics else None
    verb("train")(loaded, resume=resume, metrics=metrics)


@app.command(name="lr_find")
def lr_find(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    start: Annotated[float, typer.Option(help="The first rate.")] = 1e-7,
    end: Annotated[float, typer.Option(help="The last rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Optimizer steps from the one to the other.")] = 100,
    plot: Annotated[
        Path | None, typer.Option(help="Draw loss over rate into this picture.")
    ] = None,
) -> None:
    """Find a learning rate: raise it from step to step and watch the loss.

    Trains on the recipe's own rows, with its method, loss and optimizer. Nothing is saved or
    changed: there is no run folder. It stops where the loss diverges.

    For example:

    ```
    hftune lr_find mine.yaml
    hftune lr_find mine.yaml --plot lr_find.png
    hftune lr_find mine.yaml method.r=16 --start 1e-6 --end 0.1 --steps 200
    ```
    """
    loaded = load(recipe, overrides)
    verb("lr_find")(loaded, start=start, end=end, steps=steps, plot=plot)
