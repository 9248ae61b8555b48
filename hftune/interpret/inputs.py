# SPDX-License-Identifier: Apache-2.0
"""One text as the model of a finished run reads it, with what the model says to it.

It is read as ``hftune predict`` gives it to the model, so that what is shown is what was used.
"""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset

from hftune.core.console import warn
from hftune.core.errors import HftuneError
from hftune.data.chat_template import render
from hftune.interpret.attention import num_virtual_tokens
from hftune.models.structure import num_positions
from hftune.runs.run import Run
from hftune.tasks.generation import MAX_NEW_TOKENS
from hftune.tasks.inference import GREEDY, free_positions
from hftune.tasks.task import PredictArguments
from hftune.tasks.token_texts import EncodedText, Token, encode_prompt, encode_text, read_tokens
from hftune.tasks.words import WORD, tokenize_words

NEXT_TOKENS = 6


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one forward pass takes.

    Attributes:
        inputs: What the model takes, tensors of shape ``(1, T)``.
        tokens: The T tokens; those that begin a word carry its tag, if the model gives tags.
        decoder_tokens: Those that an encoder-decoder's decoder reads, each with what it writes.
        prediction: What the model says, where that is known before the pass.
    """

    inputs: Any
    tokens: list[Token]
    decoder_tokens: list[Token] = dataclasses.field(default_factory=list)
    prediction: dict[str, Any] | None = None


def read_pair(run: Run, text: str, text_pair: str | None, max_length: int) -> Reading:
    """Read a text, or a pair, as a classifier does."""
    encoded = _cut(run, text, text_pair, max_length)
    return Reading(inputs=encoded.inputs, tokens=encoded.tokens)


def read_words(run: Run, text: str, max_length: int) -> Reading:
    """Read a text as a tagger does; its words stand between white space."""
    encoded = _cut(run, text, None, max_length)
    limit = encoded.inputs["input_ids"].shape[1] if encoded.num_truncated else None
    words = WORD.findall(text)
    rows = Dataset.from_dict({"text": [text], "tokens": [words]})
    how = PredictArguments(max_length=limit, batch_size=1)
    (answer,) = run.task.predict(run.model.eval(), run.tokenizer, rows, how)
    _, (firsts,), _ = tokenize_words(rows, run.tokenizer, limit, warns=False)
    tags = dict(zip(firsts, answer["prediction"], strict=True))
    scores = [
        {"name": tag, "probability": share, "word": word}
        for word, tag, share in zip(words, answer["prediction"], answer["scores"], strict=True)
    ]
    entities = {"entities": answer["entities"]} if "entities" in answer else {}
    return Reading(
        inputs=encoded.inputs,
        tokens=[
            dataclasses.replace(one, output=tags.get(i)) for i, one in enumerate(encoded.tokens)
        ],
        prediction={"kind": "tags", "scores": scores, **entities},
    )


def read_and_write(run: Run, text: str, generate: int | None, max_length: int) -> Reading:
    """Read a text as an encoder-decoder does, and write the answer.

    The decoder reads its start and all of the answer but the last token, which it only writes.

    Args:
        run: The run.
        text: Without the prefix that the model was trained with; it is put before.
        generate: Tokens that are written at most; as many as the run's evaluation allows if None.
        max_length: Tokens of the text that are read at most.
    """
    task: Any = run.task
    encoded = _cut(run, (task.source_prefix or "") + text, None, max_length)
    inputs: Any = encoded.inputs.to(run.model.device)
    read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {**GREEDY, **(task.generation or {})}
    number = generate or options.get("max_new_tokens", MAX_NEW_TOKENS)
    positions = free_positions(run.model)
    if positions is not None:
        number = min(number, positions - 1)  # the start takes one
    ids = _generate(run, {**options, "max_new_tokens": number}, read)[:1]
    tokens = read_tokens(run.tokenizer, ids[0].tolist(), ["generated"] * ids.shape[1])
    answer = run.tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip()
    return Reading(
        inputs={**read, "decoder_input_ids": ids[:, :-1]},
        tokens=encoded.tokens,
        decoder_tokens=[
            dataclasses.replace(one, output=following.text) for one, following in pairwise(tokens)
        ],
        prediction={"kind": "text", "scores": [{"name": answer, "probability": None}]},
    )


def _room(model: Any, generate: int, max_length: int) -> int:
    """Return how many tokens of a text can be read, if so many are generated."""
    limit = max_length - generate
    positions = num_positions(model.config)
    if positions is not None:
        limit = min(limit, positions - generate - num_virtual_tokens(model))
    if limit < 1:
        raise HftuneError(
            f"--generate: {generate} tokens leave no room for the text",
            hint="generate fewer, or raise --max-length",
        )
    return limit


def read_prompt(run: Run, text: str, generate: int, raw: bool, max_length: int) -> Reading:
    """Read a prompt as a language model does that was trained on such rows, and go on with it.

    Args:
        run: The run.
        text: A user's turn for a model with a chat template.
        generate: Tokens that the model adds.
        raw: Leave the template out.
        max_length: Tokens of both at most.

    Raises:
        HftuneError: What is generated leaves no room for the text.
    """
    tokenizer = run.tokenizer
    limit = _room(run.model, generate, max_length)
    columns = run.metadata.columns
    trained_on_prompts = "prompt" in columns and "messages" not in columns
    if raw or tokenizer.chat_template is None or trained_on_prompts:
        encoded = encode_prompt(tokenizer, text, max_length=limit)
    else:
        prompt = render(tokenizer, [{"role": "user", "content": text}], prompt=True)
        encoded = encode_prompt(tokenizer, prompt, text, max_length=limit)
    if encoded.num_truncated:
        warn(
            f"the first {encoded.num_truncated} tokens were cut: {limit} of the prompt are read at "
            "most"
        )
    if not generate:
        return Reading(inputs=encoded.inputs, tokens=encoded.tokens)
    ids = _generate(run, {**GREEDY, "max_new_tokens": generate}, encoded.inputs)
    segments = [token.segment for token in encoded.tokens]
    segments += ["generated"] * (ids.shape[1] - len(segments))
    return Reading(
        inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        tokens=read_tokens(tokenizer, ids[0].tolist(), segments),
    )


def prediction_of(run: Run, logits: torch.Tensor) -> dict[str, Any]:
    """Return what a classifier or a language model says by its logits, the best first."""
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


def _cut(run: Run, text: str, text_pair: str | None, max_length: int) -> EncodedText:
    known = run.metadata.max_length
    limit = max_length if known is None else min(known, max_length)
    encoded = encode_text(run.tokenizer, text, text_pair, max_length=limit)
    if encoded.num_truncated:
        warn(f"the last {encoded.num_truncated} tokens were cut: {limit} are read at most")
    return encoded


def _generate(run: Run, options: dict[str, Any], inputs: Any) -> torch.Tensor:
    tokenizer = run.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    run.model.eval()
    given = {name: value.to(run.model.device) for name, value in inputs.items()}
    with torch.inference_mode():
        ids: torch.Tensor = run.model.generate(**given, pad_token_id=pad, **options)
    return ids


def _token_text(run: Run, index: int) -> str:
    (token,) = read_tokens(run.tokenizer, [index], ["generated"])
    return token.text
