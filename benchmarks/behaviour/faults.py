# SPDX-License-Identifier: Apache-2.0
"""Faulty recipes that no loop makes: files, pairs of keys, rows that ``hftune check`` refuses."""

from typing import Any

_X: dict[str, Any] = {"path": "x"}


def _curriculum(name: str, **more: Any) -> dict[str, Any]:
    return {"data": {**_X, "curriculum": {"name": name, **more}}}


#: Sections that do not go together, or do.
PAIRS: tuple[dict[str, Any], ...] = (
    {"method": {"name": "lora", "init_lora_weights": "pissa_niter_4"}},
    {"method": {"name": "lora", "init_lora_weights": "eva"}},
    {"method": {"name": "lora", "init_lora_weights": "pissa"}, "training": {"max_steps": 3}},
    {"method": "adalora", "training": {"load_best_model_at_end": True}},
    {"method": "adalora", "training": {"early_stopping_patience": 1}},
    {"training": {"eval_steps": 3}},
    {"training": {"save_steps": 100}},
    {"training": {"optim_args": "momentum"}},
    {"training": {"optim_args": "momentum=0.9,nesterov"}},
    {"training": {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}},
    {"training": {"optim": "sgd", "optim_args": "momentum=1"}},
    {"training": {"optim": "adamw"}},
    {"training": {"save_strategy": "best", "eval_strategy": "no"}},
    {"training": {"use_liger_kernel": True}},
    {"training": {"liger_kernel_config": {"rope": False}}},
    {"training": {"use_liger_kernel": True, "liger_kernel_config": {"cross_entropy": True}}},
    {"training": {"fp16": True, "bf16": True}},
    {"training": {"fp16": True, "use_cpu": True}},
    {"training": {"push_to_hub": True}},
    {"training": {"hub_token": "hf_a"}},
    {"training": {"hub_strategy": "end"}},
    {"training": {"hub_revision": "a"}},
    {"training": {"do_train": True}},
    {"training": {"warmup_ratio": 0.1}},
    {"training": {"learning_rate": 0}},
    {"training": {"early_stopping_threshold": 0.1}},
    {"training": {"load_best_model_at_end": True, "save_strategy": "steps"}},
    {"training": {"loraplus_lr_embedding": 1e-5}},
    {"model": {**_X, "attn_implementation": "flash_attention_2"}},
    {"model": {**_X, "attn_implementation": "flash_attn_2"}},
    {"model": {**_X, "classifier_pooling": "mean"}, "method": "prompt_tuning"},
    {"model": {**_X, "quantization": {"load_in_4bit": True}}, "method": "full"},
    {"model": {**_X, "quantization": {"load_in_8bit": True}}, "method": "lora"},
    {"model": {**_X, "keep_layers": []}},
    {"model": {**_X, "keep_layers": [1, 1]}},
    {"data": {**_X, "validation": "y", "validation_size": 0.2}},
    {"data": {**_X, "validation_size": 0, "max_eval_samples": 3}},
    {"data": {**_X, "validation_size": 0}, "training": {"eval_strategy": "epoch"}},
    {"data": {**_X, "sampling": {"name": "weighted"}}},
    {"data": {**_X, "sampling": {"name": "balanced", "column": "w"}}},
    {"data": {**_X, "sampling": "balanced"},
     "model": {**_X, "config": {"problem_type": "regression"}}},
    {"data": {**_X, "sampling": "balanced", "curriculum": "length"}},
    {"data": {**_X, "sampling": "balanced", "streaming": True}},
    {"data": {"path": [_X], "sampling": {"name": "weighted", "column": "w"}}},
    {"data": {"path": [{**_X, "weight": 1.0}, "y"]}},
    {"data": {"path": [{"path": "x", "weigth": 1.0}]}},
    {"data": {**_X, "sampling": "oversample"},
     "training": {"train_sampling_strategy": "sequential"}},
    {"data": {**_X, "sampling": "oversample"},
     "loss": {"name": "focal", "class_weights": "balanced"}},
    {"data": {**_X, "sampling": "balanced"}, "loss": {"name": "cross_entropy",
                                                      "logit_adjustment": 1.0}},
    {"data": {**_X, "curriculum": "length"},
     "training": {"train_sampling_strategy": "group_by_length"}},
    {"data": {**_X, "sampling": "balanced"}, "method": "probe"},
    {"data": {**_X, "curriculum": "length"}, "method": "probe"},
    {"data": {**_X, "streaming": True}, "training": {"max_steps": 3}},
    {"data": {**_X, "streaming": True, "label_names": ["a", "b"], "validation_size": 0},
     "loss": {"name": "cross_entropy", "class_weights": "inverse"}, "training": {"max_steps": 3}},
    {"data": {**_X, "token_budget": 64}, "training": {"per_device_train_batch_size": 4}},
    {"data": {**_X, "token_budget": 64, "streaming": True}, "training": {"max_steps": 3}},
    _curriculum("column"),
    _curriculum("length", column="w"),
    _curriculum("length", stages=3),
    _curriculum("length", pacing="staged", start=0.5),
    _curriculum("length", duration=2),
    _curriculum("length", model="a"),
    _curriculum("length", advance="plateau"),
    _curriculum("length", patience=2),
    _curriculum("length", pacing="staged", advance="plateau", duration=0.5),
    _curriculum("loss"),
    {"loss": {"name": "focal", "beta": 0.9}},
    {"loss": {"name": "focal", "beta": 0.9, "class_weights": "inverse"}},
    {"loss": "focal", "training": {"label_smoothing_factor": 0.1}},
    {"loss": "supervised_contrastive", "training": {"per_device_train_batch_size": 1}},
    {"loss": {"name": "r_drop", "alpha": 0}},
    {"loss": {"name": "huber", "delta": -1}},
    {"loss": {"name": "focal", "gamma": -0.5}},
    {"loss": {"name": "focal", "class_weights": "inversed"}},
    {"loss": {"name": "cross_entropy", "class_weights": {"a": None}}},
    {"loss": {"name": "cross_entropy", "logit_adjustment": 1.0, "class_weights": "inverse"}},
    {"loss": {"name": "mixup"}, "distillation": "runs/a"},
    {"method": "lorra"},
    {"loss": "focl"},
    {"task": "text-clasification"},
    {"distillation": {"teacher": []}},
    {"distillation": {"teacher": ["runs/a", "weight_averaging"]}},
    {"distillation": {"teacher": "runs/a", "top_k": 4}},
    {"distillation": {"teacher": "runs/a", "attentions": {0: 0}}},
    {"distillation": {"teacher": "runs/a", "hidden_states_weight": 1.0}},
    {"distillation": "weight_averaging"},
    {"distillation": "weight_averaging", "regularization": {"weight_averaging": "swa"}},
    {"regularization": {"weight_averaging": {"name": "swa", "decay": 0.9}}},
    {"regularization": {"weight_averaging": {"name": "ema", "every": 2}}},
    {"regularization": {"sam": 0.1, "adversarial": 0.1}},
    {"regularization": {"sam": 0.1}, "training": {"gradient_accumulation_steps": 2}},
    {"regularization": {"adversarial": 0.1}, "loss": "r_drop"},
    {"regularization": {"drop_connect": {"p": 0.1, "module": "x"}}},
    {"regularization": {"drop_path": 0.1}, "model": {**_X, "keep_layers": [0]}},
    {"evaluation": {"thresholds": "best_f1"}, "data": {**_X, "validation_size": 0}},
    {"evaluation": {"thresholds": 2}},
    {"evaluation": {"prior": {"a": 0.5}}, "model": {**_X, "config": {
        "problem_type": "multi_label_classification"}}},
    {"evaluation": {"generation": {"max_length": 3}}, "task": "text-generation"},
    {"evaluation": {"metrics": ["f1", {"average": "micro"}]}},
    {"initialization": {"rules": [{"params": "x"}]}},
    {"initialization": {"rules": [{"params": "x", "name": "prior"}]}, "task": "text-generation"},
    {"initialization": {"reinit_top_layers": 1}, "method": "lora"},
    {"learning_rate": 1e-3},
    {"lora_alpha": 3, "trainin": {}},
)  # fmt: skip

_GOOD = "task: text-classification\nmodel: x\ndata: x\n"
#: What a recipe's file can have wrong -> its text, overrides of the command line.
FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", []),
    "a list": ("- task\n", []),
    "broken": ("task: [a\nmodel: b\n", []),
    "duplicate": ("task: a\ntask: b\n", []),
    "latin": (b"task: caf\xe9\n", []),
    "lines": ("task: x\nmodel: {path: a, dtyp: b}\ndata:\n  path: c\n  max_length: 0\n", []),
    "missing sections": ("task: text-classification\ndata: x\n", []),
    "missing data": ("task: text-classification\nmodel: x\n", []),
    "yes and no": (_GOOD + "training: {run_name: no, learning_rate: 2e-4}\n", []),
    "a date": (_GOOD + "training: {run_name: 2020-01-01}\n", []),
    "taken": (_GOOD, ["method.r=16", "data.max_length=32", "loss.class_weights=balanced"]),
    "layers": (_GOOD, ["distillation={teacher: a, hidden_states: {0: 1}}"]),
    **{
        f"override {word}": (_GOOD, [word])
        for word in (
            "method.r", "task.x=1", "training.learning_rate.x=1", "method.r=[1",
            "data.label_separator=,", "method.rr=1", "method.freeze_layers=1", "learning_rate=1",
            "regularization.weight_decay=1", "data.lora_alpha=1", "training.loss=focal", "=1",
            "method=full", "model.path=y", "data.path=[a, b]",
        )
    },
}  # fmt: skip

_ROWS = "text,label\n" + "".join(f"{w} {i},{w}\n" for i in range(12) for w in ("red", "blue"))
_QUESTIONS = [f'{{"role": "user", "content": "a{i}"}}' for i in range(12)]
_ANSWER = '{"role": "assistant", "content": "b"}'
_CHATS = "".join(f'{{"messages": [{question}, {_ANSWER}]}}\n' for question in _QUESTIONS)
_SILENCE = "".join(f'{{"messages": [{question}]}}\n' for question in _QUESTIONS)


def _case(
    rows: str = _ROWS, suffix: str = ".csv", output: str = "<folder>/run", **sections: str
) -> dict[str, str]:
    training = f"{{output_dir: '{output}', use_cpu: true, {sections.pop('training', '')}}}"
    whole = {"task": "text-classification", "model": "<encoder>", "data": "<data>",
             "method": "full", **sections, "training": training}  # fmt: skip
    text = "".join(f"{key}: {value}\n" for key, value in whole.items())
    return {"recipe": text, "rows": rows, "suffix": suffix}


def _scheduled(name: str, fields: str) -> dict[str, str]:
    return _case(training=f"lr_scheduler_type: {name}, lr_scheduler_kwargs: {{{fields}}}")


def _chat(rows: str = _CHATS, **sections: str) -> dict[str, str]:
    return _case(rows, ".jsonl", **{"task": "text-generation", "model": "<decoder>", **sections})


#: What ``hftune check`` reads rows or configs to see.
CHECKED: dict[str, dict[str, str]] = {
    "fine": _case(),
    "fine chat": _chat(),
    "fine lora": _case(method="{name: lora, r: 4}", data="{path: <data>, max_length: 6}"),
    "missing file": _case(data="<folder>/nowhere.csv"),
    "glob without match": _case(data="'<folder>/*.tsv'"),
    "empty file": _case(""),
    "no rows": _case("text,label\n"),
    "broken json": _case('{"a": 1}\n{"a": \n', ".jsonl"),
    "broken parquet": _case("PAR1 no", ".parquet"),
    "duplicate columns": _case("text,text,label\na,b,c\n"),
    "missing column": _case("text,team\na,b\n"),
    "named column missing": _case(data="{path: <data>, columns: {label: team}}"),
    "one class": _case("text,label\n" + "".join(f"{i},red\n" for i in range(9))),
    "null labels": _case("text,label\na,x\nb,\nc,y\nd,\n"),
    "NaN labels": _case('{"text": "a", "label": NaN}\n', ".jsonl"),
    "empty texts": _case("text,label\n,a\n,b\n"),
    "unknown weights": _case(loss="{name: cross_entropy, class_weights: {green: 2}}"),
    "a weight short": _case(loss="{name: cross_entropy, class_weights: [2]}"),
    "negative weight": _case(loss="{name: cross_entropy, class_weights: {red: -1}}"),
    "no such weights": _case(data="{path: <data>, sampling: {name: weighted, column: trust}}"),
    "no such grade": _case(data="{path: <data>, curriculum: {name: column, column: grade}}"),
    "grade of words": _case(data="{path: <data>, curriculum: {name: column, column: text}}"),
    "no judge": _case(data="{path: <data>, curriculum: {name: loss, model: <folder>/none}}"),
    "no teacher": _case(distillation="<folder>/none"),
    "step beyond the run": _scheduled("step", "unit: epoch, step_size: 30"),
    "stages beyond the run": _scheduled("warmup_stable_decay", "num_decay_steps: 90"),
    "stages short": _scheduled("warmup_stable_decay", "num_decay_steps: 1, num_stable_steps: 1"),
    "milestone beyond": _scheduled("multistep", "unit: run, milestones: [0.5, 1.5]"),
    "milestones that fall": _scheduled("multistep", "unit: run, milestones: [0.7, 0.5]"),
    "milestone before": _scheduled("multistep", "unit: step, milestones: [-1, 3]"),
    "warmup beyond": _case(training="warmup_steps: 500"),
    "lbfgs accumulates": _case(training="optim: lbfgs, gradient_accumulation_steps: 2"),
    "rprop remarked": _case(training="optim: rprop"),
    "no roles": _chat('{"messages": ["hi"]}\n'),
    "no trained token": _chat(_SILENCE),
    "none after the cut": _chat(data="{path: <data>, max_length: 2, validation_size: 0}"),
    "missing model": _case(model="./nowhere"),
    "unknown Hub id": _case(model="nobody/nothing"),
    "unknown demo model": _case(model="demo:nothing"),
    "unknown field": _case(model="{path: <encoder>, config: {hidden_dropout: 0}}"),
    "too long": _case(data="{path: <data>, max_length: 65}"),
    "no target": _case(method="{name: lora, target_modules: [q_proj]}"),
    "targets partly": _case(method="{name: lora, target_modules: [query, vlaue]}"),
    "pattern of nothing": _case(method="{name: lora, target_modules: '.*nothing'}"),
    "PEFT refuses": _case(method="{name: adalora, use_dora: true}"),
    "layers out of range": _case(model="{path: <encoder>, keep_layers: [7]}"),
    "layers drawn anew": _case(initialization="{reinit_top_layers: 7}"),
    "modules drawn anew": _case(initialization="{reinit_modules: nothing}"),
    "group of nothing": _case(training="param_groups: [{params: nothing, lr: 0.1}]"),
    "a decoder classifies": _case(model="<decoder>"),
    "an encoder writes": _chat(model="<encoder>"),
    "drop path": _case(regularization="{drop_path: 0.1}"),
    "frozen without batch norm": _case(regularization="{freeze_batch_norm: true}"),
    "folder in use": _case(output="<folder>"),
}
