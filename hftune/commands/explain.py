# SPDX-License-Identifier: Apache-2.0
"""``hftune explain``: where the heads of a finished model read from, for one text."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write
from hftune.core.surgery import num_positions
from hftune.data.chat import render
from hftune.interpret.attention import (
    AttentionMap,
    attention_maps,
    num_virtual_tokens,
    remarks,
    sharpest_head,
)
from hftune.interpret.tokens import EncodedText, encode_prompt, encode_text, read_tokens
from hftune.report.attention_grid import draw_attention_grid
from hftune.report.attention_page import attention_page
from hftune.training.run import RECIPE_FILE, Run, load

NOTE = "Attention is not an explanation: it shows where heads read from, not why the model decides."
CLASSIFICATION, GENERATION = "text-classification", "text-generation"
NEXT_TOKENS = 6
SLUG_LENGTH = 40
DECIMALS = 8


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What :func:`explain` found.

    Attributes:
        folder: Where ``attention.html``, ``.svg``, ``.png`` and ``.json`` are.
        maps: The attention, whole; hiding special tokens is for the pictures.
        prediction: ``kind`` (``label``, ``number``, ``next_token``) and ``scores``, best first.
    """

    folder: Path
    maps: list[AttentionMap]
    prediction: dict[str, Any]


def explain(
    run: Run | str | Path,
    text: str,
    text_pair: str | None = None,
    *,
    generate: int = 0,
    raw: bool = False,
    hide_special: bool = False,
    max_length: int = 512,
    output: Path | None = None,
) -> Explanation:
    """Draw the attention of every layer and head for one text.

    Args:
        run: The run, or its folder.
        text: What the model reads; a chat model gets it as a user's turn.
        text_pair: The second text, for a classifier.
        generate: Tokens that a language model adds first, the most likely at each step.
        raw: Leave the chat template out.
        hide_special: Leave special tokens out of the pictures; the page can show them again.
        max_length: Tokens that are read at most; the files grow with its square.
        output: The folder; ``explain/`` and the text's first words in the run folder when None.

    Returns:
        The weights, the prediction and the folder.

    Raises:
        HftuneError: The model has no attention to show, or an option does not go with its task.
    """
    run = load(run) if not isinstance(run, Run) else run
    _check_options(run.facts.task, text, text_pair, generate=generate, raw=raw)
    if output is not None and output.exists() and not output.is_dir():
        raise HftuneError(f"--output: {output} is a file; a folder is needed")
    if run.facts.task == CLASSIFICATION:
        encoded = _read_text(run, text, text_pair, max_length)
    else:
        encoded = _read_prompt(run, text, max_length - generate, generate, raw)
    if generate:
        encoded = _generated(run, encoded, generate)
    inputs: Any = encoded.inputs.to(run.model.device)
    maps, outputs = attention_maps(run.model, inputs, encoded.tokens)
    prediction = _prediction(run, outputs.logits)
    folder = output if output is not None else _free_folder(run, text)
    record: dict[str, Any] = {
        "note": NOTE,
        "model": str(run.path),
        "task": run.facts.task,
        "text": text,
        "text_pair": text_pair,
        "prediction": prediction,
        "remarks": remarks(run.model),
        "hide_special": hide_special,
        "look_first": _look_first(maps[0]),
        "maps": [_as_record(one) for one in maps],
    }
    shown = [one.without_special() for one in maps] if hide_special else maps
    _write(folder, record, shown, text)
    for remark in record["remarks"]:
        warn(remark)
    _say(folder, record)
    return Explanation(folder=folder, maps=maps, prediction=prediction)


def _check_options(
    task: str, text: str, text_pair: str | None, *, generate: int, raw: bool
) -> None:
    if task not in (CLASSIFICATION, GENERATION):
        raise HftuneError(f"explain is made for {CLASSIFICATION} and {GENERATION}, not for {task}")
    if not text.strip():
        raise HftuneError("--text: the text is empty")
    if generate < 0:
        raise HftuneError(f"--generate: expected 0 or more tokens, got {generate}")
    if task == CLASSIFICATION and generate:
        raise HftuneError("--generate: a classifier generates nothing; leave it out")
    if task == CLASSIFICATION and raw:
        raise HftuneError("--raw: a classifier reads its text as it is; leave it out")
    if task == GENERATION and text_pair is not None:
        raise HftuneError("--text-pair: a language model reads one text; put both into --text")


def _read_text(run: Run, text: str, text_pair: str | None, max_length: int) -> EncodedText:
    """The text, or the pair, as ``hftune predict`` encodes it."""
    known = run.facts.max_length
    limit = max_length if known is None else min(known, max_length)
    encoded = encode_text(run.tokenizer, text, text_pair, max_length=limit)
    if encoded.cut:
        warn(f"the last {encoded.cut} tokens were cut: {limit} are read at most")
    return encoded


def _read_prompt(run: Run, text: str, max_length: int, generate: int, raw: bool) -> EncodedText:
    """The prompt as ``hftune predict`` writes it for a model that was trained on such rows."""
    tokenizer = run.tokenizer
    positions = num_positions(run.model.config)
    if positions is not None:
        max_length = min(max_length, positions - generate - num_virtual_tokens(run.model))
    if max_length < 1:
        raise HftuneError(
            f"--generate: {generate} tokens leave no room for the text",
            hint="generate fewer, or raise --max-length",
        )
    columns = run.facts.columns
    trained_on_prompts = "prompt" in columns and "messages" not in columns
    if raw or tokenizer.chat_template is None or trained_on_prompts:
        encoded = encode_prompt(tokenizer, text, max_length=max_length)
    else:
        prompt = render(tokenizer, [{"role": "user", "content": text}], prompt=True)
        encoded = encode_prompt(tokenizer, prompt, text, max_length=max_length)
    if encoded.cut:
        warn(
            f"the first {encoded.cut} tokens were cut: {max_length} of the prompt are read at most"
        )
    return encoded


def _generated(run: Run, encoded: EncodedText, number: int) -> EncodedText:
    """The prompt with the model's own continuation."""
    tokenizer = run.tokenizer
    inputs: Any = encoded.inputs.to(run.model.device)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    run.model.eval()
    with torch.inference_mode():
        ids = run.model.generate(
            **inputs,
            max_new_tokens=number,
            do_sample=False,
            pad_token_id=pad,
        )
    segments = [token.segment for token in encoded.tokens]
    segments += ["generated"] * (ids.shape[1] - len(segments))
    whole = type(encoded.inputs)({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    tokens = read_tokens(tokenizer, ids[0].tolist(), segments)
    return dataclasses.replace(encoded, inputs=whole, tokens=tokens)


def _prediction(run: Run, logits: torch.Tensor) -> dict[str, Any]:
    problem = run.task.problem_type
    if problem == "regression":
        return {"kind": "number", "scores": [{"name": f"{logits[0, 0]:.4g}", "probability": None}]}
    names = run.task.label_names
    scores_of = (logits[0] if names else logits[0, -1]).float().cpu()
    several = problem == "multi_label_classification"
    shares = scores_of.sigmoid() if several else scores_of.softmax(-1)
    best = shares.topk(len(shares) if names else min(NEXT_TOKENS, len(shares)))
    scores = [
        {"name": names[index] if names else _token_text(run, index), "probability": share}
        for index, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return {"kind": "label" if names else "next_token", "scores": scores}


def _token_text(run: Run, index: int) -> str:
    (token,) = read_tokens(run.tokenizer, [index], ["generated"])
    return token.text


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


def _write(folder: Path, record: dict[str, Any], shown: list[AttentionMap], text: str) -> None:
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
    for one in shown:
        stem = "attention" if len(shown) == 1 else f"attention-{one.kind}"
        draw_attention_grid(one.weights, one.layers, " ".join(text.split()), folder / stem)


def _look_first(one: AttentionMap) -> dict[str, Any] | None:
    found = sharpest_head(one)
    return None if found is None else dict(zip(("layer", "head", "share"), found, strict=True))


def _say(folder: Path, record: dict[str, Any]) -> None:
    prediction, found = record["prediction"], record["look_first"]
    best = prediction["scores"][0]
    what = "most likely next token" if prediction["kind"] == "next_token" else "prediction"
    share = "" if best["probability"] is None else f" ({best['probability']:.1%})"
    say(f"{what}: {best['name']!r}{share}")
    say(f"page:     {folder / 'attention.html'}")
    say(f"pictures: {folder / 'attention.svg'}, {folder / 'attention.png'}")
    say(f"numbers:  {folder / 'attention.json'}")
    if found is not None:
        say(
            f"look first at layer {found['layer']}, head {found['head']}: there a token gives "
            f"{found['share']:.0%} of its attention to one other, on average"
        )
    say(NOTE)


def _free_folder(run: Run, text: str) -> Path:
    """``explain/WORDS`` in the run folder, never inside the model; numbered when taken."""
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
