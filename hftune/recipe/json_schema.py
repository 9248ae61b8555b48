# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of recipes, read from the installed classes and cached.

``training`` has the fields of ``transformers.TrainingArguments``, ``method`` those of the PEFT
config with that name, and ``model.quantization`` those of ``transformers.BitsAndBytesConfig``; none
of them is repeated here. Reading the classes imports torch, so the schema is cached by package
versions, and later checks of recipes do not need torch.
"""

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

from hftune.core import cache
from hftune.core.registry import AT_LEAST_ONE, Row, Schema
from hftune.data.section import DataSection
from hftune.distillation.section import DistillationSection
from hftune.evaluation.section import EvaluationSection
from hftune.initialization import SCHEMES
from hftune.initialization.section import InitializationSection
from hftune.losses import LOSSES
from hftune.methods import METHODS, method_row
from hftune.models.section import ModelSection
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import SCHEDULES
from hftune.optimization.section import OwnTraining
from hftune.recipe.training_fields import RANGES, refused_training
from hftune.regularization.section import RegularizationSection
from hftune.tasks import TASKS

#: Fields of GenerationConfig that change what generate returns, or that hftune sets.
NOT_AT_EVALUATION = {
    "max_length",  # max_new_tokens takes its place
    "num_return_sequences",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
}

#: Fields of every PEFT config that hftune fills in by itself.
PEFT_BOOKKEEPING = {
    "auto_mapping",
    "base_fingerprint",
    "base_model_name_or_path",
    "finished",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}

SCHEMA_FILE = "schema.json"


def recipe_schema() -> Schema:
    """Return the JSON Schema of a recipe, from the cache if it knows the installed versions."""
    fingerprint = _fingerprint()
    folder = cache.find("schema", fingerprint)
    if folder is not None:
        with cache.until_read(folder):
            schema: Schema = json.loads((folder / SCHEMA_FILE).read_text(encoding="utf-8"))
        return schema
    print("Reading the fields of transformers and peft (once for these versions) ...",
          file=sys.stderr)  # fmt: skip
    schema = build_schema()
    if _fingerprint() == fingerprint:  # do not cache if a source file has changed meanwhile
        content = json.dumps(schema)
        cache.write_entry(
            "schema", fingerprint, lambda place: (place / SCHEMA_FILE).write_text(content)
        )
    return schema


def build_schema() -> Schema:
    """Read the installed classes; imports torch, transformers and peft."""
    from transformers import BitsAndBytesConfig, GenerationConfig

    model = _dataclass_schema(ModelSection)
    model["properties"]["quantization"] = {
        "anyOf": [_signature_schema(BitsAndBytesConfig), {"type": "null"}]
    }
    evaluation = _dataclass_schema(EvaluationSection)
    generation = _generation_schema(GenerationConfig().to_dict())
    evaluation["properties"]["generation"] = {
        "anyOf": [generation, {"type": "boolean"}, {"type": "null"}]
    }
    losses = {name: _row_schema(name, row) for name, row in LOSSES.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hftune recipe",
        "type": "object",
        "properties": {
            "task": {"type": "string", "enum": sorted(TASKS)},
            "model": {"anyOf": [{"type": "string"}, model]},
            "data": {"anyOf": [{"type": "string"}, _dataclass_schema(DataSection, RANGES["data"])]},
            "method": _choice_schema(_method_schemas()),
            "loss": _choice_schema(losses),
            "distillation": {"anyOf": [{"type": "string"}, _dataclass_schema(DistillationSection)]},
            "initialization": {
                "anyOf": [
                    {"type": "string", "enum": list(SCHEMES)},
                    _dataclass_schema(InitializationSection),
                ]
            },
            "regularization": _dataclass_schema(RegularizationSection),
            "evaluation": evaluation,
            "training": _training_schema(),
        },
        "required": ["task", "model"],
        "additionalProperties": False,
    }


def _training_schema() -> Schema:
    """Return the fields of ``TrainingArguments`` that a recipe may set, and hftune's own."""
    from transformers import TrainingArguments

    training = _dataclass_schema(TrainingArguments, RANGES["training"])
    for name in list(training["properties"]):
        if refused_training(name):
            del training["properties"][name]
    training["properties"] |= _dataclass_schema(OwnTraining)["properties"]
    for name, table in (("optim", OPTIMIZERS), ("lr_scheduler_type", SCHEDULES)):
        rest = {k: v for k, v in training["properties"][name].items() if k != "anyOf"}
        training["properties"][name] = {"type": "string", "enum": list(table), **rest}
    return training


def _method_schemas() -> dict[str, Schema]:
    """Return the options of each method; those of PEFT's types come from their configs."""
    from hftune.methods.peft import peft_configs

    methods = {name: _row_schema(name, row) for name, row in METHODS.items()}
    for name, config in peft_configs().items():
        row = method_row(name)
        methods[name] = _dataclass_schema(config, row.ranges, name, hidden=PEFT_BOOKKEEPING)
        methods[name]["description"] = row.summary
    return methods


def choice_names(section: Schema) -> dict[str, Schema]:
    """Return the object schema of each technique in a section that picks one by name.

    Example:
        >>> lora = {"type": "object", "properties": {"name": {"const": "lora"}, "r": {}}}
        >>> list(choice_names({"anyOf": [{"type": "string"}, {"oneOf": [lora]}]}))
        ['lora']
    """
    return {
        option["properties"]["name"]["const"]: option for option in section["anyOf"][1]["oneOf"]
    }


def _choice_schema(options: dict[str, Schema]) -> Schema:
    return {
        "anyOf": [
            {"type": "string", "enum": sorted(options)},
            {"type": "object", "oneOf": [options[name] for name in sorted(options)]},
        ]
    }


def _row_schema(name: str, row: Row) -> Schema:
    options = row.resolve_options()
    schema = _dataclass_schema(options, row.ranges, name, hidden=PEFT_BOOKKEEPING)
    return {**schema, "description": row.summary}


def _dataclass_schema(
    config: type,
    ranges: Mapping[str, Schema] | None = None,
    name: str | None = None,
    hidden: set[str] | frozenset[str] = frozenset(),
) -> Schema:
    hints = get_type_hints(config, include_extras=True)
    properties: Schema = {"name": {"const": name}} if name else {}
    required = ["name"] if name else []
    for field in dataclasses.fields(config):
        if not field.init or field.name in hidden:
            continue
        properties[field.name] = _field_schema(field, hints[field.name], ranges or {})
        if not name and field.default is field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _field_schema(field: dataclasses.Field[Any], hint: Any, ranges: Mapping[str, Schema]) -> Schema:
    from pydantic import TypeAdapter

    schema = _without_references(TypeAdapter(hint).json_schema())
    schema |= ranges.get(field.name, {})
    if help_text := field.metadata.get("help"):
        schema["description"] = " ".join(str(help_text).split())
    default = field.default
    if default is None or isinstance(default, bool | int | float | str):
        schema["default"] = getattr(default, "value", default)
    return schema


def _without_references(schema: Schema) -> Schema:
    """Replace each ``$ref`` with its definition, so that a reader needs no resolver."""
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(definitions[node["$ref"].rpartition("/")[2]])
        inner = {key: inline(value) for key, value in node.items() if key != "title"}
        if "enum" in inner:  # drop PEFT's placeholder pissa_niter_[number of iters]
            inner["enum"] = [value for value in inner["enum"] if "[" not in str(value)]
        if "anyOf" in inner:  # typing caches equal unions, so their order may vary
            inner["anyOf"].sort(key=lambda form: ("properties" not in form, json.dumps(form)))
        return {"additionalProperties": False, **inner} if "properties" in inner else inner

    inlined: Schema = inline(schema)
    return inlined


def _signature_schema(config: type) -> Schema:
    """Return the schema of a class that is no dataclass: names of arguments, without types."""
    parameters = inspect.signature(config).parameters.values()
    names = [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
    return {
        "type": "object",
        "properties": {name: {} for name in names},
        "required": [],
        "additionalProperties": False,
    }


def _generation_schema(fields: Iterable[str]) -> Schema:
    """Return the schema of the fields that change the generated text.

    ``GenerationConfig`` itself checks most values.
    """
    names = [
        name
        for name in fields
        if not name.startswith(("_", "output_")) and name not in NOT_AT_EVALUATION
    ]
    whole = {"type": "integer", **AT_LEAST_ONE}
    known = {"max_new_tokens": whole, "num_beams": whole, "do_sample": {"type": "boolean"}}
    return {
        "type": "object",
        "properties": {name: known.get(name, {}) for name in sorted(names)},
        "required": [],
        "additionalProperties": False,
    }


def _fingerprint() -> str:
    """Return a hash of Python's version, of package versions and of hftune's source files."""
    digest = hashlib.sha256(sys.version.encode())
    for package in ("accelerate", "torch", "transformers", "peft", "pydantic", "hftune"):
        digest.update(f"{package}=={version(package)}\n".encode())
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):  # some milliseconds
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
