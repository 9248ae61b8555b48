# SPDX-License-Identifier: Apache-2.0
"""Section ``curves``: losses, metrics and weights of short runs, to the bit.

A grid of tasks, methods and losses; every method, optimizer, schedule, initialization, sampling,
difficulty, pacing and regularization that ``hftune list`` names; and some runs of other kinds.
"""

from itertools import product
from typing import Any

import tiny
from surface import Place, trained, without_pictures

STEPS = 8
CLASSIFY, WRITE = "text-classification", "text-generation"
METHODS = ("full", "head_only", "freeze", "bitfit", "prune", "lora", "adalora", "relora",
           "bottleneck", "diff_pruning", "prompt_tuning", "ia3")  # fmt: skip
LOSSES = ("cross_entropy", "focal", "r_drop", "supervised_contrastive", "mixup", "distillation")
ALL_LINEAR = {"target_modules": "all-linear"}
#: What a method needs on models so small.
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 8},
    "diff_pruning": {"target_sparsity": 0.9},
    "fourierft": {"n_frequency": 64},
    "freeze": {"freeze_embeddings": True},
    "ln_tuning": {"target_modules": r".*(LayerNorm|layernorm|layer_?norm)[a-z_]*"},
    "lora": {"r": 4, "lora_dropout": 0.1, **ALL_LINEAR},
    "miss": {"r": 8},
    "p_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "prune": {"sparsity": 0.5},
    "psoft": {"r": 8},
    "qlora": {"r": 8, "lora_dropout": 0.0, **ALL_LINEAR},
    "relora": {"merge_every": 3, **ALL_LINEAR},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": [6, 7, 8]},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "waveft": {"n_frequency": 64},
}
SCHEDULE_OPTIONS: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0},
    "reduce_lr_on_plateau": {"patience": 0, "factor": 0.5},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.3},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "greedy": {"patience": 1, "factor": 0.7, "min_lr": 0.0},
    "step": {"unit": "run", "step_size": 0.3, "gamma": 0.5},
    "multistep": {"unit": "run", "milestones": [0.5, 0.75], "gamma": 0.1},
    "exponential": {"unit": "run", "gamma": 0.05},
    "inverse_time": {"unit": "run", "k": 10},
    "cosine_warm_restarts": {"unit": "step", "T_0": 3, "T_mult": 2},
}
#: Schedules without a warmup.
COLD = ("constant", "step", "multistep", "exponential", "inverse_time", "cosine_warm_restarts")
REGULARIZATIONS: dict[str, Any] = {
    "weight_averaging": {"name": "ema", "decay": 0.8},
    "l1": 1e-4,
    "l2": 1e-3,
    "l2_sp": 1e-2,
    "dropout": 0.2,
    "attention_dropout": 0.2,
    "drop_path": 0.2,
    "drop_connect": 0.1,
    "weight_noise": 0.01,
    "gradient_noise": 0.01,
    "sam": 0.05,
    "adversarial": 0.1,
    "freeze_batch_norm": True,
}
CONSTANT = {"name": "constant", "val": 0.01}


def sections(place: Place, task: str, method: Any = "full", **more: Any) -> dict[str, Any]:
    """Return a short recipe; what is given under a section is laid over its own."""
    model, rows = tiny.PLACES[task]
    whole: dict[str, Any] = {
        "task": task,
        "model": {"path": str(place.tiny / model)},
        "data": {"path": str(place.tiny / rows)},
        "method": {"name": method, **OPTIONS.get(method, {})}
        if isinstance(method, str)
        else method,
        "training": {
            "use_cpu": True,
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 5,
            "save_total_limit": 5,
        },
    }
    if task == "text2text-generation":
        whole["evaluation"] = {"generation": {"max_new_tokens": 4}}
    for name, value in more.items():
        mine = whole.get(name)
        merged = {**mine, **value} if isinstance(mine, dict) and isinstance(value, dict) else value
        whole[name] = {k: v for k, v in merged.items() if v is not ...} if (
            isinstance(merged, dict)) else merged  # fmt: skip
    return whole


def teachers(place: Place) -> dict[str, str]:
    """Return the teacher of each task; those of classifiers are runs, made where they lack."""
    import hftune

    for task in ("text-classification", "token-classification"):
        folder = place.work / "teachers" / task
        if not folder.exists():
            recipe = sections(place, task, training={"output_dir": str(folder)})
            hftune.train(hftune.Recipe(**recipe))
    return {
        "text-classification": str(place.work / "teachers" / "text-classification"),
        "token-classification": str(place.work / "teachers" / "token-classification"),
        "text-generation": str(place.tiny / "decoder_teacher"),
        "text2text-generation": str(place.tiny / "seq2seq_teacher"),
    }


def items(place: Place, names: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return key -> recipe of every run."""
    return {**grid(place), **techniques(place, names), **others(place)}


def grid(place: Place) -> dict[str, Any]:
    """Return tasks by methods by losses."""
    taught = {task: str(place.work / "teachers" / task) for task in tiny.PLACES}
    taught["text-generation"] = str(place.tiny / "decoder_teacher")
    taught["text2text-generation"] = str(place.tiny / "seq2seq_teacher")
    found = {}
    for task in tiny.PLACES:
        for method in METHODS:
            for loss in LOSSES:
                said: dict[str, Any] = {"loss": loss}
                if loss == "distillation":
                    said = {"distillation": {"teacher": taught[task]}}
                    if task == "text-generation":
                        said["distillation"]["top_k"] = 8
                found[f"{task} {method} {loss}"] = sections(place, task, method, **said)
    return found


def techniques(place: Place, names: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return one run of everything that ``hftune list`` names."""
    found = {**methods(place, names["methods"]), **_optimization(place, names)}
    for name in _names(names, "initializations"):
        how: Any = CONSTANT if name == "constant" else {"name": name}
        found[f"initialization {name}"] = sections(place, CLASSIFY, initialization=how)
        rule = {"rules": [{"params": ["classifier.bias"], **how}]}
        found[f"initialization of the bias {name}"] = sections(place, CLASSIFY, initialization=rule)
    for name in _names(names, "samplings"):
        drawn = {"name": name, **({"column": "trust"} if name == "weighted" else {})}
        data = {"path": str(place.tiny / "graded.jsonl"), "sampling": drawn}
        found[f"sampling {name}"] = sections(place, CLASSIFY, data=data)
    for name, pacing in product(_names(names, "difficulties"), _names(names, "pacings")):
        found[f"curriculum {name} {pacing}"] = _curriculum(place, name, pacing)
    for name in _names(names, "regularizations"):
        said = {"regularization": {name: REGULARIZATIONS.get(name, 0.1)}}
        for task, method in ((CLASSIFY, "full"), (CLASSIFY, "lora"), (WRITE, "lora")):
            key = f"regularization {name} {method if task == CLASSIFY else task}"
            found[key] = sections(place, task, method, **said)
    return found


def methods(place: Place, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return every method on the tasks that it goes with, out of two."""
    found = {}
    for entry, task in product(entries, (CLASSIFY, WRITE)):
        if not entry["tasks"] or task in entry["tasks"]:
            recipe = sections(place, task, entry["name"])
            if entry["name"] == "probe":  # no Trainer runs
                recipe["training"] = {"use_cpu": True}
            found[f"method {entry['name']} {task}"] = recipe
    return found


def _optimization(place: Place, names: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return every optimizer and every schedule."""
    found = {
        f"optimizer {name}": sections(place, CLASSIFY, training={"optim": name})
        for name in _names(names, "optimizers")
    }
    if "optimizer asgd" in found:
        found["optimizer asgd"]["training"]["optim_args"] = "t0=2"
    for name in _names(names, "schedules"):
        said: dict[str, Any] = {"lr_scheduler_type": name, "warmup_steps": 2}
        said["lr_scheduler_kwargs"] = SCHEDULE_OPTIONS.get(name, {})
        if name in COLD:
            said.pop("warmup_steps")
        if name in ("reduce_lr_on_plateau", "greedy"):
            said |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
            said |= {"save_steps": 1}
        found[f"schedule {name}"] = sections(place, CLASSIFY, training=said)
    return found


def _names(names: dict[str, list[dict[str, Any]]], kind: str) -> list[str]:
    return [entry["name"] for entry in names[kind]]


def _curriculum(place: Place, name: str, pacing: str) -> dict[str, Any]:
    said: dict[str, Any] = {"name": name, "pacing": pacing, "duration": 0.8}
    if name == "column":
        said["column"] = "grade"
    if name == "loss":
        said["model"] = str(place.work / "teachers" / "text-classification")
    data = {"path": str(place.tiny / "graded.jsonl"), "curriculum": said}
    return sections(place, "text-classification", data=data)


def others(place: Place) -> dict[str, Any]:
    """Return runs of other kinds."""
    classify, write = CLASSIFY, WRITE
    rows = {name: {"path": str(place.tiny / f"{name}.jsonl")} for name in (
        "numbered", "several", "graded", "plain", "prompts", "labelled")}  # fmt: skip
    evaluates = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    labels = ["blue", "green", "red"]
    found: dict[str, Any] = {}
    for loss in ("mse", "mae", "huber"):
        found[f"regression {loss}"] = sections(
            place, classify, data=rows["numbered"], loss=loss,
            model={"config": {"problem_type": "regression"}},
        )  # fmt: skip
    for loss in ("bce_with_logits", "focal"):
        found[f"multi_label {loss}"] = sections(
            place, classify, data=rows["several"], loss=loss, evaluation={"thresholds": "best_f1"}
        )
    for loss in (
        {"name": "cross_entropy", "class_weights": "balanced"},
        {"name": "cross_entropy", "logit_adjustment": 1.0},
        {"name": "focal", "class_weights": "effective_number"},
    ):  # fmt: skip
        found[f"loss {loss}"] = sections(place, classify, loss=loss)
    found["ordinal"] = sections(place, classify, loss="ordinal", data={"label_names": [
        "blue", "green", "red"]}, evaluation={"gap": True})  # fmt: skip
    stream = {"streaming": True, "validation_size": 6, "shuffle_buffer_size": 16}
    mixture = [
        {"path": str(place.tiny / "labelled.jsonl"), "weight": 2.0},
        {"path": str(place.tiny / "graded.jsonl"), "weight": 1.0},
    ]
    found |= {
        "streaming": sections(place, classify, data={**stream, "label_names": labels}),
        "streaming of text": sections(place, write, data={**rows["prompts"], **stream}),
        "mixture": sections(place, classify, data={"path": mixture}),
        "packed": sections(
            place, write, "lora", data={**rows["plain"], "block_size": 32, "pack_documents": True}
        ),
        "blocks of one document": sections(
            place, write, data={**rows["plain"], "block_size": 32, "pack_documents": False}
        ),
        "padded": sections(place, classify, data={"padding_free": False}),
        "trunk kept": sections(place, classify, "head_only", data={"cache_trunk": True}),
        "tokens": sections(place, classify, data={"token_budget": 40},
                           training={"per_device_train_batch_size": ...}),
        "grouped": sections(place, classify, training={
            "train_sampling_strategy": "group_by_length"}),
        "accumulated": sections(place, write, training={"gradient_accumulation_steps": 3}),
        "early stop": sections(place, classify, training={
            **evaluates, "early_stopping_patience": 1, "learning_rate": 0.05}),
        "best kept": sections(place, classify, "lora", training={
            **evaluates, "metric_for_best_model": "f1_macro"}),
        "evaluated by epoch": sections(place, classify, "lora", training={
            "eval_strategy": "epoch", "save_strategy": "epoch", "save_steps": ...,
            "max_steps": ..., "num_train_epochs": 2}),
        "staged by plateau": sections(place, classify, training=evaluates, data={
            **rows["graded"], "curriculum": {
                "name": "length", "pacing": "staged", "advance": "plateau", "patience": 1}}),
        "swa": sections(place, classify, regularization={
            "weight_averaging": {"name": "swa", "start": 0.5}}),
        "mean teacher": sections(place, classify, regularization={"weight_averaging": "ema"},
                                 distillation="weight_averaging"),
        "hidden states": sections(place, classify, model={"keep_layers": [1]}, distillation={
            "teacher": str(place.work / "teachers" / classify), "hidden_states": {0: 0, 1: 2}}),
        "attentions": sections(place, classify, model={"attn_implementation": "eager"},
                               distillation={"teacher": str(place.work / "teachers" / classify),
                                             "attentions": {1: 1}}),
        "unlabelled": sections(place, classify, distillation=str(
            place.work / "teachers" / classify),
            data={"unlabelled": str(place.tiny / "plain.jsonl")}),
        "mean pooling": sections(place, classify, model={"classifier_pooling": "mean"}),
        "layers drawn anew": sections(place, classify, initialization={"reinit_top_layers": 1}),
        "unfreezing": sections(place, classify, method={"name": "freeze", "unfreeze_every": 2}),
        "layer decay": sections(place, classify, training={
            "layer_decay": 0.8, "log_grad_norms": "layers"}),
        "groups": sections(place, classify, training={
            "param_groups": [{"params": ["classifier.weight"], "lr": 0.01, "weight_decay": 0.0}],
            "log_grad_norms": "groups"}),
        "lora plus": sections(place, classify, "lora", training={"loraplus_lr_ratio": 4.0}),
        "rate scaled": sections(place, classify, training={
            "learning_rate_scaling": {"rule": "sqrt", "batch_size": 16}, "max_grad_value": 0.1}),
        "generation": sections(place, write, data=rows["prompts"], evaluation={
            "generation": {"max_new_tokens": 4}}),
        "gap and prior": sections(place, classify, evaluation={"gap": True, "prior": "uniform"}),
        "thresholds": sections(place, classify, evaluation={"thresholds": "best_f1"}),
        "probe of ridge": {**sections(place, classify, method={
            "name": "probe", "classifier": "ridge"}, data=rows["numbered"],
            model={"config": {"problem_type": "regression"}}), "training": {"use_cpu": True}},
        "label smoothing": sections(place, write, training={"label_smoothing_factor": 0.1}),
        "checkpointing": sections(place, write, training={"gradient_checkpointing": True}),
        "bf16": sections(place, write, "lora", training={"bf16": True}),
    }  # fmt: skip
    return found


#: Runs that draw their pictures, which takes as long as the run.
DRAWN = ("layer decay", "groups", "best kept", "text-classification prune cross_entropy")


def record(place: Place, key: str, recipe: dict[str, Any]) -> Any:
    """Train a recipe and return what the run left."""
    if key in DRAWN:
        return trained(place, f"curves {key}", recipe)
    with without_pictures():
        return trained(place, f"curves {key}", recipe)
