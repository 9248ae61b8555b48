# SPDX-License-Identifier: Apache-2.0
"""Copies of a run's text files that mean the same on another machine.

Local paths are reduced to their last name, and an adapter names its base by its Hub id.
"""

import glob
import json
import re
from io import StringIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ruamel.yaml import YAML

from hftune.core.errors import HftuneError
from hftune.models.demo_models import DEMO_MODELS
from hftune.recipe.training_fields import PUSH_FIELDS

DEMO = "demo:"
DATA_SUFFIXES = (".csv", ".jsonl", ".parquet")
#: Traces of the machine that Transformers leaves in config.json and tokenizer_config.json.
LOADING_TRACES = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
NOTE = "Local paths are reduced to file names: put your own in their place."


def public_base(base_model: str, *, adapter: bool, named: str | None = None) -> str:
    """Return the name of the base model on other machines.

    Args:
        base_model: Place that the run loaded the base from.
        adapter: Whether the pushed model needs the base.
        named: Hub id with the same weights, if the user gave one.

    Raises:
        HftuneError: The base of an adapter is only on this machine.

    Example:
        >>> public_base("demo:minilm", adapter=True)
        'sentence-transformers/all-MiniLM-L6-v2'
        >>> public_base("/data/models/base", adapter=False)
        'base'
    """
    if named is not None:
        return named
    if base_model.startswith(DEMO):
        demo = DEMO_MODELS.get(base_model.removeprefix(DEMO))
        if demo is not None and demo.hub_id is not None:
            return demo.hub_id
        if not adapter:
            return base_model
    elif not is_local(base_model):
        return base_model
    if adapter:
        raise HftuneError(
            f"an adapter needs its base model, and {base_model} is not on the Hub",
            hint="if the Hub has the same weights, name them: hftune push RUN --repo USER/NAME "
            "--base USER/BASE; if not, upload the base first: hf upload USER/BASE FOLDER",
        )
    return last_name(base_model)


def is_local(path: str) -> bool:
    """Tell whether a path is a local folder or file, and not the id of a Hub repository.

    Example:
        >>> is_local("/data/base"), is_local("FacebookAI/roberta-base")
        (True, False)
    """
    absolute = path.startswith((".", "/", "~", "file:", "\\")) or DRIVE.match(path) is not None
    return absolute or path.count("/") > 1 or Path(path).exists()


def last_name(path: str) -> str:
    r"""Return the last part of a path.

    Example:
        >>> last_name("/data/tickets/*.csv"), last_name(r"C:\data\tickets.csv")
        ('*.csv', 'tickets.csv')
    """
    kind = PureWindowsPath if DRIVE.match(path) or "\\" in path else PurePosixPath
    return kind(path).name or "local"


def clean_recipe(text: str, base: str) -> str:
    r"""Return a recipe without local paths and without the fields that push a model.

    Args:
        text: Content of ``recipe.yaml``.
        base: Result of :func:`public_base`.

    Example:
        >>> text = "model: {path: roberta-base}\n"
        >>> text += "data: {path: [/home/me/a.csv]}\n"
        >>> text += "training: {seed: 1, hub_model_id: me/x}\n"
        >>> print(clean_recipe(text, "roberta-base"), end="")
        # Local paths are reduced to file names: put your own in their place.
        model: {path: roberta-base}
        data: {path: [a.csv]}
        training: {seed: 1}
    """
    yaml = YAML(typ="rt")
    tree = yaml.load(text)
    for name in PUSH_FIELDS:
        tree["training"].pop(name, None)
    before = json.dumps(tree)
    model = tree["model"]
    if is_local(model["path"]):
        model["path"] = base
    for key in ("path", "validation"):
        if key in tree["data"]:
            tree["data"][key] = _source(tree["data"][key])
    _shorten(tree)
    if json.dumps(tree) != before:
        tree.yaml_set_start_comment(NOTE)
    out = StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


def _source(value: object) -> object:
    """Reduce the path of a data file to its last name; keep Hub ids and demo data."""
    if isinstance(value, list):
        return [_source(item) for item in value]
    if not isinstance(value, str) or value.startswith(DEMO):
        return value
    is_file = value.endswith(DATA_SUFFIXES) or glob.has_magic(value)
    return last_name(value) if is_file or is_local(value) else value


def _shorten(node: Any) -> None:
    """Reduce every absolute path below ``node`` to its last name."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        if isinstance(value, dict | list):
            _shorten(value)
        elif isinstance(value, str) and _is_absolute(value):
            node[key] = last_name(value)


def _is_absolute(value: str) -> bool:
    return value.startswith(("/", "~/", "file:")) or DRIVE.match(value) is not None


def clean_json(text: str, **changes: object) -> str:
    """Return a JSON object with ``changes`` and without the places that it was loaded from.

    Example:
        >>> text = '{"_name_or_path": "/home/me/base", "hidden_size": 8}'
        >>> print(clean_json(text, dropout=0), end="")
        {
          "hidden_size": 8,
          "dropout": 0
        }
    """
    values = {key: value for key, value in json.loads(text).items() if key not in LOADING_TRACES}
    return json.dumps({**values, **changes}, indent=2, ensure_ascii=False) + "\n"
