# SPDX-License-Identifier: Apache-2.0
"""``training.push_to_hub``, checked before the training instead of after it."""

from dataclasses import dataclass
from typing import Any, TypedDict

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.core.processes import Processes, on_main_process
from hftune.hub.sanitize import public_base
from hftune.hub.upload import check_repo_id, check_target
from hftune.methods import method_row
from hftune.recipe.recipe import Recipe


class PushOptions(TypedDict):
    """Arguments of :func:`hftune.push`.

    Example:
        >>> PushOrder(repo="me/tickets", public=False, revision=None).options()
        {'repo': 'me/tickets', 'public': False, 'revision': None}
    """

    repo: str
    public: bool
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class PushOrder:
    """The repository that a recipe asks to push its model to.

    Attributes:
        repo: ``training.hub_model_id``.
        public: Whether ``training.hub_private_repo`` is false; the default is a private repository.
        revision: ``training.hub_revision``.
    """

    repo: str
    public: bool
    revision: str | None

    def options(self) -> PushOptions:
        """Return the arguments of :func:`hftune.push` except for the run."""
        return {"repo": self.repo, "public": self.public, "revision": self.revision}


def push_order(training: dict[str, Any]) -> PushOrder | None:
    """Return the push that a ``training`` section asks for, or None.

    Example:
        >>> push_order({"push_to_hub": True, "hub_model_id": "me/tickets"})
        PushOrder(repo='me/tickets', public=False, revision=None)
        >>> push_order({})
    """
    if not training.get("push_to_hub"):
        return None
    return PushOrder(
        repo=training["hub_model_id"],
        public=training.get("hub_private_repo") is False,
        revision=training.get("hub_revision"),
    )


def check_push(recipe: Recipe, processes: Processes) -> PushOrder | None:
    """Ask the Hub whether the push that a recipe asks for is allowed.

    Args:
        recipe: The recipe of the run.
        processes: The processes of the run; one of them asks for all.

    Raises:
        HftuneError: The push is not allowed, or other machines could not load the model.
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
