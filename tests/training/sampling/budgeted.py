# SPDX-License-Identifier: Apache-2.0
"""Recipes for tiny models whose batches go by tokens."""

from collections.abc import Callable
from typing import Any

from hftune import Recipe


def budgeted(
    make_recipe: Callable[..., Recipe],
    task: str = "text-classification",
    budget: int = 40,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **sections: Any,
) -> Recipe:
    """Return a recipe of ``make_recipe`` with a token budget in place of a number of rows."""
    base = make_recipe(task)
    given = {k: v for k, v in base.training.items() if k in ("output_dir", "use_cpu", "max_steps")}
    return Recipe(
        **{
            "task": task,
            "model": {"path": base.model.path},
            "data": {"path": base.data.path, "token_budget": budget, **(data or {})},
            "method": "full",
            "training": {**given, "logging_steps": 1, **(training or {})},
            **sections,
        }
    )
