# SPDX-License-Identifier: Apache-2.0
"""The model card: what the model is, how it did, and the lines that load it without hftune."""

import json
import re
from collections.abc import Mapping
from typing import Any

from hftune.methods.probe.card_lines import probe_code
from hftune.models.save import ModelFacts

AUTO_CLASSES = {
    "text-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
    "text-generation": "CausalLM",
    "text2text-generation": "Seq2SeqLM",
}
CARD_METRICS = ("loss", "perplexity", "accuracy", "f1", "f1_macro", "f1_weighted", "mcc",
                "r2", "spearman", "bleu", "chrf", "rouge1", "rouge2", "rougeL",
                "exact_match")  # fmt: skip

#: What the lines that load the model name until it has a place on the Hub.
FOLDER = '"FOLDER"'
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")

MEAN_POOLING = """
The head of this model reads the mean over all tokens, not the first one. Transformers has no
switch for that in this architecture, so put the mean in the first place before using it:

```python
import torch

encoder = ENCODER
parts = dict(encoder.named_children())
stack = parts.get("encoder") or parts["transformer"]
seen = {}

def remember(module, args, kwargs):
    seen["mask"] = kwargs["attention_mask"]

def mean_first(module, args, output):
    hidden, mask = output[0], seen["mask"][..., None].to(output[0].dtype)
    mean = (hidden * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    last = torch.cat([mean, hidden[:, 1:]], 1)
    if "hidden_states" in output:
        output["hidden_states"] = (*output["hidden_states"][:-1], last)
    output["last_hidden_state"] = last
    return output

encoder.register_forward_pre_hook(remember, with_kwargs=True)
stack.register_forward_hook(mean_first)
```

`hftune.load` on the folder does the same by itself.
"""
OWN_TYPE = """
PEFT itself has no adapter of the type {kind}: hftune adds it, so hftune must be installed, and
`import {module}` must come before the adapter is loaded. Without it PEFT stops with
`KeyError: '{KIND}'`.
"""
#: Task options -> what hftune decides by; Transformers reads neither.
DECIDED_BY = {"thresholds": "thresholds", "prior": "the shares of a prior"}
DECIDED = (
    "The figures are of labels that are given by {by}, which `hftune.json` holds. hftune applies "
    "them; a Transformers pipeline does not."
)
MEAN_POOLING_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def model_card(facts: ModelFacts, metrics: Mapping[str, Any], *, adapter: bool) -> str:
    """Return the text of README.md, with the Hub's metadata on top.

    Args:
        facts: What was trained on what.
        metrics: ``metrics.json``; the ``eval_`` figures are shown.
        adapter: Whether the folder holds an adapter and needs its base.
    """
    library = "sklearn" if facts.probe else "peft" if adapter else "transformers"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {facts.task}", "tags:"]
    lines += ["- hftune", f"- {facts.method}"]
    if HUB_ID.fullmatch(facts.base_model):
        lines.append(f"base_model: {facts.base_model}")
    lines += ["---", "", f"# {facts.base_model}, fine-tuned: {facts.method}", ""]
    lines += [f"A model for {facts.task}, made with hftune."]
    if facts.label_names:
        lines += ["", f"Labels: {', '.join(f'`{name}`' for name in facts.label_names)}."]
    figures = [(name, metrics.get(f"eval_{name}")) for name in CARD_METRICS]
    if any(value is not None for _, value in figures):
        lines += ["", "| on the validation rows | |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in figures if value is not None]
    lines += ["", "## Use", "", "```python", *_loading(facts, adapter), "```"]
    if facts.tuner_module:
        lines.append(
            OWN_TYPE.format(module=facts.tuner_module, kind=facts.method, KIND=facts.method.upper())
        )
    if adapter and facts.no_merge:
        lines += [
            "",
            f"The adapter cannot be merged into its base: {facts.method} {facts.no_merge}.",
        ]
    elif facts.tuner_module:
        lines += ["", "`hftune export` merges it into its base, which then needs neither."]
    if _needs_mean_pooling(facts):
        lines.append(MEAN_POOLING.replace("ENCODER", _encoder(adapter)))
    if decided := [word for key, word in DECIDED_BY.items() if facts.task_options.get(key)]:
        lines += ["", DECIDED.format(by=" and ".join(decided))]
    if facts.max_length is not None and facts.task != "text-generation":
        lines += ["", f"Texts were cut at {facts.max_length} tokens."]
    return "\n".join(lines).rstrip() + "\n"


def card_for_hub(
    card: str, facts: ModelFacts, *, base_model: str, repo: str, revision: str | None = None
) -> str:
    """Return a card, perhaps edited by hand since, that names Hub ids in place of local folders.

    Args:
        card: The text of README.md.
        facts: What it was written from.
        base_model: How the base model is called on another machine.
        repo: Where the model will be.
        revision: The branch there, where it is not the main one.
    """
    place = json.dumps(repo) + (f", revision={json.dumps(revision)}" if revision else "")
    card = card.replace(f"# {facts.base_model}, fine-tuned", f"# {base_model}, fine-tuned")
    card = card.replace(FOLDER, place)
    header = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    if header is None:
        return card
    lines = header[1].replace(f"base_model: {facts.base_model}\n", "")
    if HUB_ID.fullmatch(base_model) and "base_model:" not in lines:
        lines += f"base_model: {base_model}\n"
    return f"---\n{lines}---\n{card[header.end() :]}"


def loading_code(facts: ModelFacts, *, adapter: bool, place: str, **options: str) -> str:
    """Return the card's own lines as a program that makes ``model`` and ``tokenizer``.

    A probe's make ``features`` and ``probe``, too.

    Args:
        facts: What was trained on what.
        adapter: Whether the folder holds an adapter.
        place: Where the model is loaded from.
        options: More arguments of the model's ``from_pretrained``.
    """
    lines = _loading(facts, adapter, json.dumps(place), options)
    if _needs_mean_pooling(facts):
        lines += MEAN_POOLING_CODE.findall(MEAN_POOLING.replace("ENCODER", _encoder(adapter)))
    return "\n".join(lines) + "\n"


def _needs_mean_pooling(facts: ModelFacts) -> bool:
    return facts.classifier_pooling == "mean" and "classifier_pooling" not in facts.config


def _encoder(adapter: bool) -> str:
    return "model.base_model.model.base_model" if adapter else "model.base_model"


def _loading(
    facts: ModelFacts, adapter: bool, place: str = FOLDER, options: Mapping[str, str] | None = None
) -> list[str]:
    if facts.probe:
        return probe_code(facts, place, options or {})
    kind = AUTO_CLASSES[facts.task]
    auto = f"AutoPeftModelFor{kind}" if adapter else f"AutoModelFor{kind}"
    arguments = [place, *(f"{key}={value!r}" for key, value in (options or {}).items())]
    if adapter and facts.label_names:
        labels = "{" + ", ".join(
            f"{index}: {json.dumps(name, ensure_ascii=False)}"
            for index, name in enumerate(facts.label_names)
        ) + "}"  # fmt: skip
        arguments += [f"num_labels={len(facts.label_names)}", f"id2label={labels}"]
    elif adapter and facts.num_labels:
        arguments.append(f"num_labels={facts.num_labels}")
    if adapter:
        arguments += [f"{key}={value!r}" for key, value in facts.config.items()]
    names = "AutoTokenizer"
    if facts.quantization:
        names = "AutoTokenizer, BitsAndBytesConfig"
        fields = ", ".join(f"{key}={value!r}" for key, value in facts.quantization.items())
        arguments.append(f"quantization_config=BitsAndBytesConfig({fields})")
    registers = [f"import {facts.tuner_module}  # tells PEFT of the type"] * bool(
        facts.tuner_module
    )
    return [
        *registers,
        f"from {'peft' if adapter else 'transformers'} import {auto}",
        f"from transformers import {names}",
        "",
        f"model = {auto}.from_pretrained({', '.join(arguments)})",
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
    ]
