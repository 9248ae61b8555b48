# SPDX-License-Identifier: Apache-2.0
"""``hftune explain``: draw the attention of a finished model for one text."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write
from hftune.interpret.attention import AttentionMap, attention_maps, remarks, sharpest_head
from hftune.methods import method_row
from hftune.report.attention_grid import draw_attention_grid
from hftune.report.attention_page import attention_page
from hftune.runs.run import RECIPE_FILE, Run, load
from hftune.tasks import TASKS
from hftune.tasks.explain_inputs import ExplainOptions
from hftune.tasks.task import Task

NOTE = "Attention is not an explanation: it shows where heads read from, not why the model decides."
SLUG_LENGTH = 40
DECIMALS = 8


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Result of :func:`explain`.

    Attributes:
        folder: Folder of ``attention.html``, ``.svg``, ``.png`` and ``.json``.
        maps: The attention with all special tokens: one map, or three for an encoder-decoder.
        prediction: ``kind`` (``label``, ``number``, ``next_token``, ``tags``, ``text``) and
            ``scores``: the best first; those of tags in the order of the words.
    """

    folder: Path
    maps: list[AttentionMap]
    prediction: dict[str, Any]


def explain(
    run: Run | str | Path,
    text: str,
    text_pair: str | None = None,
    *,
    generate: int | None = None,
    raw: bool = False,
    hide_special: bool = False,
    max_length: int = 512,
    output: Path | None = None,
) -> Explanation:
    """Draw the attention of every layer and head for one text.

    Args:
        run: The run, or its folder.
        text: Text for the model; a chat model gets it as a user's turn.
        text_pair: The second text, for a classifier.
        generate: Number of tokens that a language model adds first by greedy search (default: 0),
            or the limit for an encoder-decoder (default: that of evaluation).
        raw: Use no chat template.
        hide_special: Leave special tokens out of the pictures; the page can show them again.
        max_length: Limit of tokens of the text; the files grow with its square.
        output: The folder; ``explain/`` and the text's first words in the run folder if None.

    Returns:
        The weights, the prediction and the folder.

    Raises:
        HftuneError: The model has no attention to show, or an option does not suit its task.
    """
    run = load(run) if not isinstance(run, Run) else run
    _check(run, text, text_pair, generate=generate, raw=raw, output=output)
    options = _options(run, text_pair, generate=generate, raw=raw, max_length=max_length)
    maps, prediction = _explained(run, text, options)
    folder = output if output is not None else _free_folder(run, text)
    record = _record(run, text, text_pair, prediction, maps, hide_special=hide_special)
    _write(folder, record, maps)
    return Explanation(folder=folder, maps=maps, prediction=prediction)


def _check(
    run: Run,
    text: str,
    text_pair: str | None,
    *,
    generate: int | None,
    raw: bool,
    output: Path | None,
) -> None:
    method, name = run.metadata.method, run.metadata.task
    suited = [task for task, row in TASKS.items() if row.modality == "text"]
    if name not in suited:
        raise HftuneError(f"explain is made for {', '.join(suited)}, not for {name}")
    if method_row(method).saves == "classifier":
        raise HftuneError(f"explain cannot tell yet what a {method} reads from its frozen trunk")
    _check_options(run.task, text, text_pair, generate=generate, raw=raw)
    if output is not None and output.exists() and not output.is_dir():
        raise HftuneError(f"--output: {output} is a file; a folder is needed")


def _options(
    run: Run, text_pair: str | None, *, generate: int | None, raw: bool, max_length: int
) -> ExplainOptions:
    return ExplainOptions(
        text_pair=text_pair,
        generate=generate,
        raw=raw,
        max_length=max_length,
        trained_length=run.metadata.max_length,
        columns=run.metadata.columns,
    )


def _explained(
    run: Run, text: str, options: ExplainOptions
) -> tuple[list[AttentionMap], dict[str, Any]]:
    """Run the model, and return its attention and its prediction."""
    task = run.task
    read = task.explain_inputs(run.model, run.processor, text, options)
    inputs = {name: value.to(run.model.device) for name, value in read.inputs.items()}
    maps, outputs = attention_maps(run.model, inputs, read.tokens, read.decoder_tokens)
    return maps, read.prediction or task.prediction_of(outputs.logits, run.processor)


def _record(
    run: Run,
    text: str,
    text_pair: str | None,
    prediction: dict[str, Any],
    maps: list[AttentionMap],
    *,
    hide_special: bool,
) -> dict[str, Any]:
    """Return the content of attention.json, with weights as arrays."""
    return {
        "note": NOTE,
        "model": str(run.path),
        "task": run.metadata.task,
        "text": text,
        "text_pair": text_pair,
        "prediction": prediction,
        "remarks": remarks(run.model),
        "hide_special": hide_special,
        "look_first": _look_first(maps[-1]),  # cross-attention of an encoder-decoder
        "maps": [_as_record(one) for one in maps],
    }


def _check_options(
    task: Task, text: str, text_pair: str | None, *, generate: int | None, raw: bool
) -> None:
    row, roles = TASKS[task.name], {role.name for role in task.roles}
    if not text.strip():
        raise HftuneError("--text: the text is empty")
    if generate is not None and generate < 0:
        raise HftuneError(f"--generate: expected 0 or more tokens, got {generate}")
    if generate and not row.writes:
        raise HftuneError(f"--generate: {task.noun} generates nothing; leave it out")
    if generate == 0 and row.encoder_decoder:
        raise HftuneError("--generate: a decoder reads what it writes; give 1 or more")
    if raw and "messages" not in roles:
        raise HftuneError(f"--raw: {task.noun} reads its text as it is; leave it out")
    if text_pair is not None and "text_pair" not in roles:
        raise HftuneError(f"--text-pair: {task.noun} reads one text; put both into --text")


def _as_record(one: AttentionMap) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "causal": one.causal,
        "layers": one.layers,
        "heads": one.weights.shape[1],
        "queries": [dataclasses.asdict(token) for token in one.queries],
        "keys": [dataclasses.asdict(token) for token in one.keys],
        "weights": one.weights,
    }


def _write(folder: Path, record: dict[str, Any], maps: list[AttentionMap]) -> None:
    """Write all files, and print their paths."""
    shown = [one.without_special() for one in maps] if record["hide_special"] else maps
    pictures = _write_files(folder, record, shown)
    for remark in record["remarks"]:
        warn(remark)
    _say(folder, record, pictures)


def _write_files(
    folder: Path, record: dict[str, Any], shown: list[AttentionMap]
) -> list[list[Path]]:
    """Write all files and return the pictures, those of each map together."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HftuneError(f"--output: {folder} cannot be created: {error.strerror}") from error
    numbers = [
        {**one, "weights": np.round(one["weights"].astype(np.float64), DECIMALS).tolist()}
        for one in record["maps"]
    ]
    whole = json.dumps({**record, "maps": numbers}, ensure_ascii=False, separators=(",", ":"))
    atomic_write(folder / "attention.json", whole + "\n")
    atomic_write(folder / "attention.html", attention_page(record))
    words = " ".join(record["text"].split())
    if len(shown) == 1:
        return [draw_attention_grid(shown[0].weights, shown[0].layers, words, folder / "attention")]
    return [
        draw_attention_grid(
            one.weights, one.layers, f"{one.kind}: {words}", folder / f"attention-{one.kind}"
        )
        for one in shown
    ]


def _look_first(one: AttentionMap) -> dict[str, Any] | None:
    found = sharpest_head(one)
    if found is None:
        return None
    return {"kind": one.kind, **dict(zip(("layer", "head", "share"), found, strict=True))}


def _say(folder: Path, record: dict[str, Any], pictures: list[list[Path]]) -> None:
    _say_prediction(record["prediction"])
    say(f"page:     {folder / 'attention.html'}")
    for files in pictures:
        say(f"pictures: {', '.join(map(str, files))}")
    say(f"numbers:  {folder / 'attention.json'}")
    found = record["look_first"]
    if found is not None:
        kind = "" if found["kind"] == "self" else f"{found['kind']} attention, "
        say(
            f"look first at {kind}layer {found['layer']}, head {found['head']}: there a token "
            f"gives {found['share']:.0%} of its attention to one other, on average"
        )
    say(NOTE)


def _say_prediction(prediction: dict[str, Any]) -> None:
    if prediction["kind"] == "tags":
        words = [f"{one['word']}/{one['name'] or '?'}" for one in prediction["scores"]]
        say(f"predicted tags: {' '.join(words)}")
        return
    best = prediction["scores"][0]
    names = {"next_token": "most likely next token", "text": "written text"}
    share = "" if best["probability"] is None else f" ({best['probability']:.1%})"
    say(f"{names.get(prediction['kind'], 'prediction')}: {best['name']!r}{share}")


def _free_folder(run: Run, text: str) -> Path:
    """Return ``explain/WORDS`` in the run folder, outside the model; add a number if taken."""
    home = run.path
    if run.model_path == run.path:
        above = run.path.absolute().parent
        home = above if (above / RECIPE_FILE).is_file() else Path()
    words = re.sub(r"[^a-z0-9]+", "-", text.lower())[:SLUG_LENGTH].strip("-") or "text"
    folder, number = home / "explain" / words, 1
    while folder.exists():
        number += 1
        folder = home / "explain" / f"{words}-{number}"
    return folder
