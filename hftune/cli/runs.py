# SPDX-License-Identifier: Apache-2.0
"""Commands that work on a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from hftune.cli.app import RunArgument, app
from hftune.cli.terminal import numbers, verb


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
def export(
    runs: Annotated[
        list[Path], typer.Argument(help="A finished run, or several that have the same base.")
    ],
    output: Annotated[Path, typer.Option(help="The folder for the model.")],
    weights: Annotated[
        str | None, typer.Option(help="How much of each run: 0.7,0.3. Equal parts if absent.")
    ] = None,
    combination: Annotated[
        str,
        typer.Option(help="linear, magnitude_prune, ties, dare_linear or dare_ties."),
    ] = "linear",
    density: Annotated[
        float | None,
        typer.Option(help="Share of each run's changes that stays, for all but linear."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (that of the base), float32, bfloat16 or float16.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of what dare leaves out.")] = 42,
) -> None:
    """Write a plain Transformers model: adapters go into their base, several runs are added up.

    It needs neither PEFT nor hftune, and a recipe can start from it: model: plain.

    For example:

    ```
    hftune export runs/mine --output plain
    hftune export runs/a runs/b --weights 0.7,0.3 --output both
    hftune export runs/a runs/b runs/c --combination ties --density 0.2 --output all
    ```
    """
    options = {"combination": combination, "density": density, "dtype": dtype, "seed": seed}
    verb("export")(runs, output, weights=numbers(weights, "--weights"), **options)


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
