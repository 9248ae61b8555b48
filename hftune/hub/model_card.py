# SPDX-License-Identifier: Apache-2.0
"""The model card: description, metrics, and code that loads the model without hftune."""

import json
import re
from collections.abc import Mapping

from hftune.evaluation import shown_metrics
from hftune.methods import method_row
from hftune.models.save import ModelMetadata
from hftune.tasks import TASKS

#: Placeholder in the loading code until the model has a repository on the Hub.
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
#: Task options that hftune applies and Transformers does not read -> their description.
DECIDED_BY = {"thresholds": "thresholds", "prior": "the shares of a prior"}
DECIDED = (
    "The figures are of labels that are given by {by}, which `hftune.json` holds. hftune applies "
    "them; a Transformers pipeline does not."
)
MEAN_POOLING_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def model_card(metadata: ModelMetadata, metrics: Mapping[str, object], *, adapter: bool) -> str:
    """Return the text of README.md, with the Hub's metadata on top.

    Args:
        metadata: Metadata of the saved model.
        metrics: Content of ``metrics.json``; the card shows the ``eval_`` figures.
        adapter: Whether the folder holds an adapter and needs its base.
    """
    lines = [
        "---",
        f"library_name: {_library(metadata, adapter)}",
        f"pipeline_tag: {metadata.task}",
        "tags:",
    ]
    lines += ["- hftune", f"- {metadata.method}"]
    if HUB_ID.fullmatch(metadata.base_model):
        lines.append(f"base_model: {metadata.base_model}")
    lines += ["---", "", f"# {metadata.base_model}, fine-tuned: {metadata.method}", ""]
    lines += [f"A model for {metadata.task}, made with hftune."]
    if metadata.label_names:
        lines += ["", f"Labels: {', '.join(f'`{name}`' for name in metadata.label_names)}."]
    figures = [(name, metrics.get(f"eval_{name}")) for name in shown_metrics("card")]
    if any(value is not None for _, value in figures):
        lines += ["", "| on the validation rows | |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in figures if value is not None]
    lines += ["", "## Use", "", "```python", *_loading(metadata, adapter), "```"]
    if metadata.tuner_module:
        lines.append(
            OWN_TYPE.format(
                module=metadata.tuner_module, kind=metadata.method, KIND=metadata.method.upper()
            )
        )
    if adapter and metadata.no_merge:
        lines += [
            "",
            f"The adapter cannot be merged into its base: {metadata.method} {metadata.no_merge}.",
        ]
    elif metadata.tuner_module:
        lines += ["", "`hftune export` merges it into its base, which then needs neither."]
    if _needs_mean_pooling(metadata):
        lines.append(MEAN_POOLING.replace("ENCODER", _encoder(adapter)))
    if decided := [word for key, word in DECIDED_BY.items() if metadata.task_options.get(key)]:
        lines += ["", DECIDED.format(by=" and ".join(decided))]
    if metadata.max_length is not None and TASKS[metadata.task].label_kind != "next_token":
        lines += ["", f"Texts were cut at {metadata.max_length} tokens."]
    return "\n".join(lines).rstrip() + "\n"


def card_for_hub(
    card: str, metadata: ModelMetadata, *, base_model: str, repo: str, revision: str | None = None
) -> str:
    """Return a card with Hub ids in place of local folders.

    The user may have edited the card since hftune wrote it.

    Args:
        card: The text of README.md.
        metadata: Metadata that the card was written from.
        base_model: Name of the base model on other machines.
        repo: Repository of the model on the Hub.
        revision: Branch of the repository; None for the main branch.
    """
    place = json.dumps(repo) + (f", revision={json.dumps(revision)}" if revision else "")
    card = card.replace(f"# {metadata.base_model}, fine-tuned", f"# {base_model}, fine-tuned")
    card = card.replace(FOLDER, place)
    header = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    if header is None:
        return card
    lines = header[1].replace(f"base_model: {metadata.base_model}\n", "")
    if HUB_ID.fullmatch(base_model) and "base_model:" not in lines:
        lines += f"base_model: {base_model}\n"
    return f"---\n{lines}---\n{card[header.end() :]}"


def loading_code(metadata: ModelMetadata, *, adapter: bool, place: str, **options: str) -> str:
    """Return the loading code of the card, as a program that creates model and processor.

    The code of some methods creates more variables, such as ``features``.

    Args:
        metadata: Metadata of the saved model.
        adapter: Whether the folder holds an adapter.
        place: Folder or Hub id of the model.
        options: Further arguments of ``from_pretrained``.

    Example:
        >>> metadata = ModelMetadata(task="text-generation", base_model="gpt2")
        >>> print(loading_code(metadata, adapter=False, place="me/poet"), end="")
        from transformers import AutoModelForCausalLM
        from transformers import AutoTokenizer
        <BLANKLINE>
        model = AutoModelForCausalLM.from_pretrained("me/poet")
        tokenizer = AutoTokenizer.from_pretrained("me/poet")
    """
    lines = _loading(metadata, adapter, json.dumps(place), options)
    if _needs_mean_pooling(metadata):
        lines += MEAN_POOLING_CODE.findall(MEAN_POOLING.replace("ENCODER", _encoder(adapter)))
    return "\n".join(lines) + "\n"


def _needs_mean_pooling(metadata: ModelMetadata) -> bool:
    return metadata.classifier_pooling == "mean" and "classifier_pooling" not in metadata.config


def _encoder(adapter: bool) -> str:
    return "model.base_model.model.base_model" if adapter else "model.base_model"


def _library(metadata: ModelMetadata, adapter: bool) -> str:
    """Return the Hub's name of the library that loads the model."""
    if method_row(metadata.method).saves == "classifier":
        return "sklearn"
    return "peft" if adapter else "transformers"


def _loading(
    metadata: ModelMetadata,
    adapter: bool,
    place: str = FOLDER,
    options: Mapping[str, str] | None = None,
) -> list[str]:
    own = method_row(metadata.method).resolve().loading_code(metadata, place)
    if own is not None:
        return list(own)
    task = TASKS[metadata.task].resolve()
    plain, on_base = task.auto_model.__name__, adapter and not TASKS[metadata.task].peft_task_type
    auto = plain.replace("AutoModel", "AutoPeftModel") if adapter and not on_base else plain
    first = "adapter.base_model_name_or_path, revision=adapter.revision" if on_base else place
    arguments = [first, *(f"{key}={value!r}" for key, value in (options or {}).items())]
    if adapter and metadata.label_names:
        labels = "{" + ", ".join(
            f"{index}: {json.dumps(name, ensure_ascii=False)}"
            for index, name in enumerate(metadata.label_names)
        ) + "}"  # fmt: skip
        arguments += [f"num_labels={len(metadata.label_names)}", f"id2label={labels}"]
    elif adapter and metadata.num_labels:
        arguments.append(f"num_labels={metadata.num_labels}")
    if adapter:
        arguments += [f"{key}={value!r}" for key, value in metadata.config.items()]
    processor = names = task.auto_processor.__name__
    if metadata.quantization:
        names = f"{processor}, BitsAndBytesConfig"
        fields = ", ".join(f"{key}={value!r}" for key, value in metadata.quantization.items())
        arguments.append(f"quantization_config=BitsAndBytesConfig({fields})")
    registers = [f"import {metadata.tuner_module}  # tells PEFT of the type"] * bool(
        metadata.tuner_module
    )
    if on_base:  # PEFT has no class that loads adapters of such a task
        return [
            *registers,
            "from peft import PeftConfig, PeftModel",
            f"from transformers import {auto}, {names}",
            "",
            f"adapter = PeftConfig.from_pretrained({place})",
            f"base = {auto}.from_pretrained({', '.join(arguments)})",
            f"model = PeftModel.from_pretrained(base, {place})",
            f"{task.processor_name} = {processor}.from_pretrained({place})",
        ]
    return [
        *registers,
        f"from {'peft' if adapter else 'transformers'} import {auto}",
        f"from transformers import {names}",
        "",
        f"model = {auto}.from_pretrained({', '.join(arguments)})",
        f"{task.processor_name} = {processor}.from_pretrained({place})",
    ]
