# SPDX-License-Identifier: Apache-2.0
"""Expand short forms, and add the defaults that a careful practitioner would pick."""

from dataclasses import replace
from enum import Enum
from typing import Any, TypedDict

from hftune.core.registry import Choice
from hftune.data.section import CurriculumChoice, DataSection, SamplingChoice, SourceItem
from hftune.distillation.section import DistillationSection
from hftune.evaluation.section import EvaluationSection
from hftune.initialization.section import InitializationRule, InitializationSection
from hftune.methods import method_row
from hftune.models.section import ModelSection
from hftune.optimization.optimizers import DEFAULT as ADAMW
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import DEFAULT as LINEAR
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.sections import DEFAULT_NAMES, SHORT_FORMS
from hftune.regularization.section import RegularizationSection, regularization_section
from hftune.tasks import TASKS


class Sections(TypedDict):
    """The sections of a recipe by name."""

    task: str
    model: ModelSection
    data: DataSection
    method: Choice
    loss: Choice | None
    distillation: DistillationSection | None
    initialization: InitializationSection
    regularization: RegularizationSection
    evaluation: EvaluationSection
    training: dict[str, Any]


def typed_sections(tree: dict[str, Any]) -> Sections:
    """Turn a checked tree into section objects; ``training`` stays a mapping without defaults.

    Example:
        >>> sections = typed_sections({"task": "text-generation", "model": "gpt2"})
        >>> sections["model"].path, sections["method"].name, sections["loss"]
        ('gpt2', 'lora', None)
    """
    method = _method(_spelled_out(tree, "method"))
    return {
        "task": tree["task"],
        "model": _model(_spelled_out(tree, "model"), method.name),
        "data": _data(_spelled_out(tree, "data")),
        "method": method,
        "loss": _choice(_spelled_out(tree, "loss")) if "loss" in tree else None,
        "distillation": _distillation(_spelled_out(tree, "distillation"))
        if "distillation" in tree
        else None,
        "initialization": _initialization(_spelled_out(tree, "initialization")),
        "regularization": regularization_section(tree.get("regularization") or {}),
        "evaluation": EvaluationSection(**(tree.get("evaluation") or {})),
        "training": {
            key: value.value if isinstance(value, Enum) else value
            for key, value in (tree.get("training") or {}).items()
        },
    }


def training_defaults(sections: Sections) -> dict[str, Any]:
    """Return the section ``training`` with hftune's defaults for the fields that it leaves out.

    With validation rows, evaluation and saving happen each epoch and the best model is kept.
    """
    given = sections["training"]
    method = method_row(sections["method"].name)
    if method.fitted:
        return {"seed": 42, "per_device_eval_batch_size": 64, **given}
    data = sections["data"]
    has_validation = data.validation is not None or data.validation_size > 0
    evaluates = given.get("eval_strategy", "epoch" if has_validation else "no")
    saves = given.get("save_strategy", evaluates if evaluates != "no" else "epoch")
    defaults: dict[str, Any] = {
        "learning_rate": OPTIMIZERS[given.get("optim", ADAMW)].learning_rate
        or learning_rate(sections["task"], sections["method"].name),
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "logging_steps": 0.02,
        "seed": 42,
        "eval_strategy": evaluates,
        "save_strategy": saves,
        "save_total_limit": 1,
        "report_to": "none",
    }
    if evaluates == "steps":
        defaults["eval_steps"] = given.get("logging_steps", defaults["logging_steps"])
        if saves == "steps":
            defaults["save_steps"] = given.get("eval_steps", defaults["eval_steps"])
    if given.get("max_steps", -1) <= 0:
        defaults["num_train_epochs"] = 3
    training_rows, evaluation_rows = TASKS[sections["task"]].batch_sizes
    by_task = {"per_device_eval_batch_size": evaluation_rows}
    if data.token_budget is None:
        by_task = {"per_device_train_batch_size": training_rows, **by_task}
    chosen = {**defaults, **by_task, **method.training_defaults, **given}
    chosen |= {k: v for k, v in optimizer_defaults(chosen).items() if k not in given}
    matches = chosen["save_strategy"] in ("best", evaluates) and not method.changes_shape
    chosen.setdefault("load_best_model_at_end", evaluates != "no" and matches)
    return chosen


def optimizer_defaults(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``training`` that follow from the optimizer and the schedule.

    Example:
        >>> optimizer_defaults({"lr_scheduler_type": "constant"})
        {'warmup_steps': 0}
    """
    optimizer = OPTIMIZERS[chosen.get("optim", ADAMW)]
    defaults = dict(optimizer.training_defaults)
    if not optimizer.decays:
        defaults["weight_decay"] = 0.0
    schedule = SCHEDULES[{**chosen, **defaults}.get("lr_scheduler_type", LINEAR)]
    if schedule.warmup is not None:
        defaults["warmup_steps"] = schedule.warmup
    elif schedule.flat and not optimizer.own_schedule:
        defaults["warmup_steps"] = 0
    return defaults


def learning_rate(task: str, method: str) -> float:
    """Return the default learning rate for a method on a task.

    Example:
        >>> task = "text-classification"
        >>> learning_rate(task, "lora") > learning_rate(task, "full")
        True
    """
    row, of_tokens = method_row(method), TASKS[task].label_kind == "next_token"
    if of_tokens and row.learning_rate_writing is not None:
        return row.learning_rate_writing
    return row.learning_rate


def _spelled_out(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name, DEFAULT_NAMES.get(name, {}))
    return {SHORT_FORMS[name]: section} if isinstance(section, str) else dict(section)


def _model(section: dict[str, Any], method: str) -> ModelSection:
    """Return the section ``model``; its quantization overrides the one of the method."""
    if (usual := method_row(method).quantization) is not None:
        section["quantization"] = {**usual, **(section.get("quantization") or {})}
    return ModelSection(**section)


def _data(section: dict[str, Any]) -> DataSection:
    """Return the section ``data``; sources, sampling and curriculum become objects, too."""
    path = section.get("path")
    if isinstance(path, list | tuple):
        items = [SourceItem(**item) if isinstance(item, dict) else item for item in path]
        section["path"] = items
    for key, record in (("sampling", SamplingChoice), ("curriculum", CurriculumChoice)):
        if (given := section.get(key)) is not None:
            section[key] = record(**({"name": given} if isinstance(given, str) else given))
    return DataSection(**section)


def _distillation(section: dict[str, Any]) -> DistillationSection:
    """Return the section ``distillation``; layer numbers that JSON made texts become numbers."""
    for name in ("hidden_states", "attentions"):
        layers = section.get(name) or {}
        section[name] = {
            int(layer) if isinstance(layer, str) and layer.isdecimal() else layer: other
            for layer, other in layers.items()
        }
    return DistillationSection(**section)


def _initialization(section: dict[str, Any]) -> InitializationSection:
    """Return the section ``initialization``; its rules become objects, too."""
    rules = [InitializationRule(**rule) for rule in section.pop("rules", ())]
    return InitializationSection(**section, rules=rules)


def _method(section: dict[str, Any]) -> Choice:
    choice = _choice(section)
    return replace(choice, options={**method_row(choice.name).defaults, **choice.options})


def _choice(section: dict[str, Any]) -> Choice:
    name = section.pop("name")
    return Choice(name=name, options=section)
