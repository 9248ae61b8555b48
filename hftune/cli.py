# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call the function of the same name, print.

Imports nothing heavy at the top, so that help and a mistake in a recipe answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hftune import __version__
from hftune.core.errors import HftuneError
from hftune.terminal import (
    launch,
    load,
    named_columns,
    plain_errors,
    quieten,
    said_of_precision,
    say_next,
    show,
    verb,
)

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


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[str, typer.Argument(help="Rows with labels: file, glob, folder or Hub id.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 32,
    output: Annotated[
        Path | None, typer.Option(help="Write the metrics here as JSON, too.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric of the evaluate library, by name or path; its script runs."),
    ] = None,
) -> None:
    """Measure a finished run on any rows with labels.

    For example:

    ```
    hftune evaluate runs/mine held_out.csv
    hftune evaluate runs/mine held_out.csv --output held_out.json
    ```
    """
    verb("evaluate")(run, data, batch_size=batch_size, output=output, metrics=metric or ())


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
    """Predict rows with a finished run: labels with scores, tags, or text.

    Each row is written back with its own columns and the prediction beside them.

    For example:

    ```
    hftune predict runs/mine new.csv predictions.jsonl
    hftune predict runs/chat questions.jsonl answers.jsonl --max-new-tokens 200
    ```
    """
    verb("predict")(run, data, output, batch_size=batch_size, max_new_tokens=max_new_tokens)


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

    For example:

    ```
    hftune chat runs/mine
    hftune chat demo:smollm2 --temperature 0.7 --seed 1
    hftune chat runs/mine < questions.txt > answers.txt
    ```
    """
    options = {"temperature": temperature, "top_p": top_p, "seed": seed}
    verb("chat")(model, system=system, max_new_tokens=max_new_tokens, **options)


@app.command()
def explain(
    run: RunArgument,
    text: Annotated[str, typer.Option(help="What the model reads.")],
    text_pair: Annotated[
        str | None, typer.Option(help="The second text, for a classifier of pairs.")
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Let a language model add so many tokens first; an encoder-decoder writes at most "
            "so many.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take the text as it is, without the chat template.")
    ] = False,
    hide_special: Annotated[
        bool, typer.Option("--hide-special", help="Leave special tokens out of the pictures.")
    ] = False,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens that are read at most.")] = 512,
    output: Annotated[
        Path | None, typer.Option(help="The folder for the page, pictures and numbers.")
    ] = None,
) -> None:
    """Draw the attention of every layer and head for one text.

    Writes a page to look at, SVG, PNG and JSON to RUN/explain/. Attention is not an explanation: it
    shows where heads read from, not why the model decides.

    For example:

    ```
    hftune explain runs/quickstart --text "Return the eigenvalues of a matrix."
    hftune explain runs/pairs --text "It rains." --text-pair "It is wet." --hide-special
    hftune explain runs/chat --text "Name three rivers." --generate 20
    hftune explain runs/summaries --text "numpy.linalg.eig(a)"
    ```
    """
    options = {"generate": generate, "raw": raw, "hide_special": hide_special}
    verb("explain")(run, text, text_pair, max_length=max_length, output=output, **options)


@app.command()
def push(
    run: RunArgument,
    repo: Annotated[str, typer.Option(help="Where it goes on the Hub: USER/NAME.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="Hub id of the base model, for an adapter trained on a local folder with the "
            "same weights."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; the main one if absent.")] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload with hftune",
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see a new repository.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show and check all, and send nothing.")
    ] = False,
) -> None:
    """Send a finished run to the Hub: model, tokenizer, card, recipe and metrics in one commit.

    Only files on a list leave, without local paths. Before they do, a fresh process loads them and
    must give the run's logits. The repository is private unless you say --public.

    For example:

    ```
    hftune push runs/mine --repo USER/NAME --dry-run
    hftune push runs/mine --repo USER/NAME
    hftune push runs/mine --repo USER/NAME --base USER/BASE --revision second
    ```
    """
    options = {"base": base, "revision": revision, "public": public, "dry_run": dry_run}
    verb("push")(run, repo, message=message, **options)


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

    For example:

    ```
    hftune list
    hftune list methods
    hftune list optimizers --json
    ```
    """
    from hftune.commands.list import list_, listing

    entries = list_(kind)
    show(entries if as_json else listing(entries))


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
) -> None:
    """Look whether this machine is ready: versions, devices, extras, folders, the Hub.

    Changes nothing. The exit code is 1 if something that hftune needs is broken.
    """
    from hftune.commands.doctor import doctor, report

    quieten()
    findings = doctor()
    show(findings if as_json else report(findings))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; errors that a user can act on are printed without a traceback."""
    with plain_errors():
        app(standalone_mode=True)
