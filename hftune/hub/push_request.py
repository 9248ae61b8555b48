# SPDX-License-Identifier: Apache-2.0
"""``training.push_to_hub``, looked at before the hours of training and not after them."""

from dataclasses import dataclass
from typing import Any

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.core.processes import Processes, on_main_process
from hftune.hub.sanitize import public_base
from hftune.hub.upload import check_repo_id, check_target
from hftune.methods import method_row
from hftune.recipe.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class PushOrder:
    """Where a recipe wants its model to go.

    Attributes:
        repo: ``training.hub_model_id``.
        public: ``training.hub_private_repo`` is false; left out it is private.
        revision: ``training.hub_revision``.
    """

    repo: str
    public: bool
    revision: str | None

    def options(self) -> dict[str, Any]:
        """Return the arguments of :func:`hftune.push` that go beside the run."""
        return {"repo": self.repo, "public": self.public, "revision": self.revision}


def push_order(training: dict[str, Any]) -> PushOrder | None:
    """Return what a recipe's ``training`` section says of pushing; None when it says nothing."""
    if not training.get("push_to_hub"):
        return None
    return PushOrder(
        repo=training["hub_model_id"],
        public=training.get("hub_private_repo") is False,
        revision=training.get("hub_revision"),
    )


def check_push(recipe: Recipe, processes: Processes) -> PushOrder | None:
    """Ask the Hub whether the model of a recipe may be pushed, if it shall be.

    Args:
        recipe: What is trained, and where it goes.
        processes: One of them asks for all.

    Raises:
        HftuneError: It may not, or nobody else could load it.
    """
    order = push_order(recipe.training)
    if order is None:
        return None
    check_repo_id(order.repo, "training.hub_model_id")
    try:
        public_base(recipe.model.path, adapter=method_row(recipe.method.name).needs_base)
    except HftuneError as error:
        raise HftuneError(f"training.push_to_hub: {error.message}", hint=error.hint) from error
    say(on_main_process(processes, lambda: _permission(order)))
    return order


def _permission(order: PushOrder) -> str:
    target = check_target(order.repo, public=order.public, revision=order.revision)
    return f"will be pushed to {target}"
