# SPDX-License-Identifier: Apache-2.0
"""hftune: a recipe becomes a fine-tuned model.

The verbs of the command line are functions of the same names::

    import hftune

    recipe = hftune.Recipe(task="text-classification", model="demo:minilm", data="demo:docstrings")
    run = hftune.train(recipe)
    print(run.metrics["eval_f1_macro"])

Names are imported when they are first used, so that ``import hftune`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hftune.commands.chat import chat
    from hftune.commands.check import check
    from hftune.commands.doctor import doctor
    from hftune.commands.evaluate import evaluate
    from hftune.commands.explain import explain
    from hftune.commands.export import export
    from hftune.commands.init import init
    from hftune.commands.lr_find import lr_find
    from hftune.commands.predict import predict
    from hftune.commands.push import push
    from hftune.commands.schema import schema
    from hftune.commands.train import train
    from hftune.core.errors import HftuneError, RecipeError, RunError
    from hftune.losses.loss import Loss
    from hftune.recipe.recipe import Recipe
    from hftune.runs.run import Run, load

__version__ = "0.1.0"
__all__ = [
    "HftuneError",
    "Loss",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "chat",
    "check",
    "doctor",
    "evaluate",
    "explain",
    "export",
    "init",
    "load",
    "lr_find",
    "predict",
    "push",
    "schema",
    "train",
]

_PLACES = {
    "HftuneError": "hftune.core.errors",
    "Loss": "hftune.losses.loss",
    "Recipe": "hftune.recipe.recipe",
    "RecipeError": "hftune.core.errors",
    "Run": "hftune.runs.run",
    "RunError": "hftune.core.errors",
    "chat": "hftune.commands.chat",
    "check": "hftune.commands.check",
    "doctor": "hftune.commands.doctor",
    "evaluate": "hftune.commands.evaluate",
    "explain": "hftune.commands.explain",
    "export": "hftune.commands.export",
    "init": "hftune.commands.init",
    "load": "hftune.runs.run",
    "lr_find": "hftune.commands.lr_find",
    "predict": "hftune.commands.predict",
    "push": "hftune.commands.push",
    "schema": "hftune.commands.schema",
    "train": "hftune.commands.train",
}


def __getattr__(name: str) -> object:
    if name in _PLACES:
        value: object = getattr(import_module(_PLACES[name]), name)
        return value
    raise AttributeError(f"module 'hftune' has no attribute {name!r}")
