# SPDX-License-Identifier: Apache-2.0
"""Sections ``recipes`` and ``refusals``: what a recipe resolves to, or why it is not taken.

Nothing here reads weights or rows, but for the faults that ``hftune check`` finds.
"""

import copy
import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from curves import METHODS, OPTIONS, REGULARIZATIONS, SCHEDULE_OPTIONS
from faults import CHECKED, FILES, PAIRS
from surface import Place, attempt, box, imported

Names = dict[str, list[dict[str, Any]]]
TASKS = ("text-classification", "token-classification", "text-generation", "text2text-generation")
LOSSES = ("bce_with_logits", "cross_entropy", "focal", "huber", "mae", "mixup", "mse", "ordinal",
          "r_drop", "supervised_contrastive")  # fmt: skip
DRAWN = 450
#: Methods whose crosses with all else are tried; the other PEFT types are as some of these.
CROSSED = (*METHODS, "probe", "qlora", "prefix_tuning", "p_tuning", "adaption_prompt", "osf",
           "trainable_tokens", "vera", "ln_tuning", "loha")  # fmt: skip
TASK_OPTIONS: dict[str, tuple[str, Any]] = {
    "problem_type": ("model", {"path": "x", "config": {"problem_type": "regression"}}),
    "label_names": ("data", {"path": "x", "label_names": ["a", "b"]}),
    "label_separator": ("data", {"path": "x", "label_separator": "|"}),
    "block_size": ("data", {"path": "x", "block_size": 8}),
    "pack_documents": ("data", {"path": "x", "pack_documents": True}),
    "system_prompt": ("data", {"path": "x", "system_prompt": "Be kind."}),
    "source_prefix": ("data", {"path": "x", "source_prefix": "sum: "}),
    "max_target_length": ("data", {"path": "x", "max_target_length": 8}),
    "token_budget": ("data", {"path": "x", "token_budget": 64}),
    "padding_free": ("data", {"path": "x", "padding_free": True}),
    "cache_trunk": ("data", {"path": "x", "cache_trunk": True}),
    "streaming": ("data", {"path": "x", "streaming": True, "validation_size": 0}),
    "unlabelled": ("data", {"path": "x", "unlabelled": "y"}),
    "thresholds": ("evaluation", {"thresholds": "best_f1"}),
    "prior": ("evaluation", {"prior": "estimated"}),
    "generation": ("evaluation", {"generation": {"max_new_tokens": 4}}),
    "gap": ("evaluation", {"gap": True}),
    "classifier_pooling": ("model", {"path": "x", "classifier_pooling": "mean"}),
    "keep_layers": ("model", {"path": "x", "keep_layers": [0]}),
    "quantization": ("model", {"path": "x", "quantization": {"load_in_4bit": True}}),
    "half": ("model", {"path": "x", "dtype": "bfloat16"}),
    "eager": ("model", {"path": "x", "attn_implementation": "eager"}),
    "distillation": ("distillation", {"teacher": "runs/a"}),
    "mean teacher": ("distillation", "weight_averaging"),
    "hidden states": ("distillation", {"teacher": "runs/a", "hidden_states": {0: 0}}),
    "reinit": ("initialization", {"reinit_top_layers": 1}),
    "zeros": ("initialization", "zeros"),
    "steps": ("training", {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 3}),
    "early": ("training", {"early_stopping_patience": 2}),
    "layer_decay": ("training", {"layer_decay": 0.9}),
    "groups": ("training", {"param_groups": [{"params": "x", "lr": 0.1}]}),
    "loraplus": ("training", {"loraplus_lr_ratio": 4}),
    "smoothing": ("training", {"label_smoothing_factor": 0.1}),
    "accumulation": ("training", {"gradient_accumulation_steps": 4}),
    "best": ("training", {"load_best_model_at_end": True, "eval_strategy": "epoch"}),
    "bf16": ("training", {"bf16": True}),
    "checkpointing": ("training", {"gradient_checkpointing": True}),
    "clip": ("training", {"max_grad_value": 0.5, "log_grad_norms": "layers"}),
}
DRAWING = {"gain": 2.0, "a": 0.1, "mode": "fan_out", "val": 1, "std": 0.1}
BESIDE_OPTIMIZERS = ("sam", "weight_averaging", "l2", "gradient_noise", "adversarial")
OPTIMIZER_OPTIONS: tuple[dict[str, Any], ...] = (
    {"gradient_accumulation_steps": 2},
    {"optim_args": "momentum=0.9"},
    {"optim_args": "nothing=1"},
    {"optim_args": "betas=x"},
    {"fp16": True},
    {"layer_decay": 0.9},
    {"weight_decay": 0.1},
    {"adam_beta1": 0.5},
    {"warmup_steps": 3},
)
SCHEDULE_FAULTS: tuple[dict[str, Any], ...] = (
    {},
    {"nothing": 1},
    {"gamma": "x"},
    {"unit": "day"},
    {"num_cycles": -1},
)


def recipe_items(place: Place, names: Names) -> dict[str, Any]:
    """Return the shipped recipes, and many that are drawn, valid for the most part."""
    shipped = sorted((imported() / "recipes").rglob("*.yaml"))
    found: dict[str, Any] = {
        f"shipped {path.relative_to(imported())}": {"load": str(path)} for path in shipped
    }
    draw = random.Random(20)
    for _ in range(DRAWN):
        recipe = _drawn(draw, names)
        found[f"drawn {json.dumps(recipe)}"] = {"recipe": recipe, "spelled_out": True}
    return found


def _drawn(draw: random.Random, names: Names) -> dict[str, Any]:
    def pick(kind: str) -> str:
        return draw.choice(sorted(entry["name"] for entry in names[kind]))

    task = draw.choice(TASKS)
    suited = sorted(e["name"] for e in names["methods"] if task in (e["tasks"] or [task]))
    method = draw.choice(suited)
    recipe: dict[str, Any] = {"task": task, "model": {"path": "x"}, "data": {"path": "x"}}
    recipe["method"] = {"name": method, **OPTIONS.get(method, {})}
    training: dict[str, Any] = {}
    if draw.random() < 0.4:
        recipe["loss"] = draw.choice(
            sorted(e["name"] for e in names["losses"] if task in (e["tasks"] or [task]))
        )
    if draw.random() < 0.3:
        training["optim"] = draw.choice(["adamw_torch", "sgd", "adafactor", "muon", "nadam"])
    if draw.random() < 0.4:
        name = pick("schedules")
        training["lr_scheduler_type"] = name
        training["lr_scheduler_kwargs"] = SCHEDULE_OPTIONS.get(name, {})
    if draw.random() < 0.3:
        name = pick("regularizations")
        recipe["regularization"] = {name: REGULARIZATIONS.get(name, 0.1)}
    if draw.random() < 0.2:
        recipe["data"]["curriculum"] = {"name": "length", "pacing": pick("pacings")}
    elif draw.random() < 0.1:
        recipe["data"]["sampling"] = pick("samplings")
    for _ in range(draw.randrange(3)):
        section, value = TASK_OPTIONS[draw.choice(sorted(TASK_OPTIONS))]
        mine = training if section == "training" else recipe.setdefault(section, {})
        if isinstance(value, dict) and isinstance(mine, dict):
            mine.update(value)
        else:
            recipe[section] = value
    return {**recipe, "training": training}


def refusal_items(place: Place, names: Names) -> dict[str, Any]:
    """Return recipes of which many are faulty, by what is wrong or put together."""
    found: dict[str, Any] = {}
    for sections in (*_crossed(names), *_mistyped(), *PAIRS):
        whole = {"task": "text-classification", "model": "x", "data": "x", **sections}
        found[json.dumps(sections)] = {"recipe": whole}
    for name, (text, overrides) in FILES.items():
        found[f"file {name}"] = {"text": text, "overrides": overrides}
    for name, case in CHECKED.items():
        found[f"check {name}"] = {"check": case}
    return found


def _crossed(names: Names) -> Iterator[dict[str, Any]]:
    """Yield each with each: techniques, tasks and keys that may not go together."""
    listed = {kind: sorted(entry["name"] for entry in entries) for kind, entries in names.items()}
    keys = [{section: value} for section, value in TASK_OPTIONS.values()]
    keys += [{"loss": loss} for loss in LOSSES]
    keys += [
        {"regularization": {name: REGULARIZATIONS.get(name, 0.1)}}
        for name in listed["regularizations"]
    ]
    drawn = [{"data": {"path": "x", "sampling": name}} for name in listed["samplings"]]
    drawn += [{"data": {"path": "x", "curriculum": name}} for name in listed["difficulties"]]
    taught = [{"loss": loss, "distillation": "runs/a"} for loss in LOSSES]
    for method, task in product(listed["methods"], TASKS):
        yield {"method": method, "task": task}
    for method, key in product(CROSSED, keys + drawn):
        yield {"method": method, **key}
    for task, key in product(TASKS, keys + drawn + taught):
        yield {"task": task, **key}
    yield from _crossed_optimizers(listed["optimizers"], listed["schedules"])
    for scheme, (key, value) in product(listed["initializations"], DRAWING.items()):
        yield {"initialization": {"name": scheme, key: value}}


def _crossed_optimizers(optimizers: list[str], schedules: list[str]) -> Iterator[dict[str, Any]]:
    for optimizer, schedule in product(optimizers, schedules):
        kwargs = SCHEDULE_OPTIONS.get(schedule, {})
        said = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs}
        yield {"training": {"optim": optimizer, **said}}
    for optimizer, name in product(optimizers, BESIDE_OPTIMIZERS):
        key = {"regularization": {name: REGULARIZATIONS[name]}}
        yield {"training": {"optim": optimizer}, **key}
    for optimizer, said in product(optimizers, OPTIMIZER_OPTIONS):
        yield {"training": {"optim": optimizer, **said}}
    for schedule, kwargs in product(schedules, SCHEDULE_FAULTS):
        yield {"training": {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs}}
    for schedule, steps in product(schedules, (0, 3, 0.1)):
        yield {"training": {"lr_scheduler_type": schedule, "warmup_steps": steps}}


def _mistyped() -> Iterator[dict[str, Any]]:
    """Yield every key of the schema misspelt, and with values of wrong types and ranges."""
    import hftune

    number = 0
    wrong: list[Any] = [-1, "text", [], {"a": "b"}, None, True]
    for section, part in hftune.schema()["properties"].items():
        yield {section[:-1]: {}}
        yield {section: 7}
        for form in _objects(part):
            name = form["properties"].get("name", {}).get("const")
            base = {"name": name} if name else {}
            if section in ("model", "data"):
                base = {"path": "x"}
            for key in form["properties"]:
                if key == "name":
                    continue
                number += 1
                if name is None or number % 4 == 0:
                    yield {section: {**base, key[:-1] + "q": 1}}
                few = section in ("method", "training")
                for value in [wrong[number % len(wrong)]] if few else wrong:
                    yield {section: {**base, key: value}}


def _objects(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if part.get("properties"):
        yield part
    for form in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        yield from _objects(form)


def record(place: Place, key: str, item: dict[str, Any]) -> Any:
    """Return the resolved recipe, or what was refused."""
    import hftune

    if "check" in item:
        with box(place, f"refusals {key}") as folder:
            return _checked(place, folder, **item["check"])
    if "text" in item:
        with box(place, f"refusals {key}") as folder:
            path = folder / "recipe.yaml"
            path.write_bytes(item["text"] if isinstance(item["text"], bytes) else
                             item["text"].encode())  # fmt: skip
            return _resolved(place, lambda: hftune.Recipe.load(path, item["overrides"]))
    if "load" in item:
        return _resolved(place, lambda: hftune.Recipe.load(item["load"]))
    recipe = copy.deepcopy(item["recipe"])
    return _resolved(place, lambda: hftune.Recipe(**recipe), spelled_out=item.get("spelled_out"))


def _resolved(place: Place, work: Any, *, spelled_out: bool | None = True) -> Any:
    found, recipe = attempt(place, work)
    if recipe is None:
        return found
    if not spelled_out:
        return {**found, "accepted": True}
    return {"said": found["said"], "resolved": place.plain(recipe.to_yaml())}


def _checked(
    place: Place, folder: Path, recipe: str, rows: str = "", suffix: str = ".csv"
) -> dict[str, Any]:
    """Check a recipe of a file in a folder that holds its rows."""
    import hftune

    data = folder / f"data{suffix}"
    data.write_text(rows, encoding="utf-8")
    models = {name: place.tiny / name for name in ("encoder", "decoder", "seq2seq")}
    path = folder / "recipe.yaml"
    for word, value in {**models, "data": data, "folder": folder}.items():
        recipe = recipe.replace(f"<{word}>", str(value))
    path.write_text(recipe, encoding="utf-8")
    return attempt(place, lambda: hftune.check(hftune.Recipe.load(path)))[0]
