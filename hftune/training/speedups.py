# SPDX-License-Identifier: Apache-2.0
"""Speed up a training run without a change of results: skip padding and frozen layers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

from torch import nn

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.speed.fused_lora import fused_lora
from hftune.speed.padding_free import padding_free
from hftune.training.distributed.sharding import is_sharded
from hftune.training.frozen_layer_cache import cached_frozen_layers
from hftune.training.plan.plan import Plan
from hftune.training.plan.token_budget import padded_by_run
from hftune.training.trainer import HftuneTrainer


@contextmanager
def speedups(plan: Plan, trainer: HftuneTrainer) -> Iterator[None]:
    """Skip padding and repeated passes through frozen layers while the context lasts.

    Raises:
        HftuneError: The recipe demands one of them, and it is impossible.
    """
    with without_padding(plan, trainer), cached_frozen_layers(plan, trainer):
        yield


@contextmanager
def without_padding(plan: Plan, trainer: HftuneTrainer) -> Iterator[None]:
    """Skip padding in the layers, and fuse LoRA, while the context lasts, if that is exact.

    Raises:
        HftuneError: ``data.padding_free`` or a token budget demands it, and it is impossible.
    """
    wanted, why = plan.settings.recipe.data.padding_free, None
    if is_sharded(trainer.accelerator):
        why = "it is not tested with a sharded model"
    else:
        why = padded_by_run(plan.settings.recipe, plan.settings.arguments)
    if why is not None and wanted:
        raise HftuneError(f"data.padding_free: {why}", hint="leave it out")
    model = cast(nn.Module, trainer.model)
    with ExitStack() as stack:
        with trainer.accelerator.autocast():  # the precision of the steps
            packed = padding_free(model, False if why else wanted)
            reason = stack.enter_context(packed)
        as_it_is = is_sharded(trainer.accelerator) or plan.settings.arguments.torch_compile
        stack.enter_context(fused_lora(model, not as_it_is))
        trainer.throughput.padding_free = not (why or reason)
        if why or reason:
            say(f"batches are padded: {why or reason}")
            _check_budget(plan, why or reason)
        yield


def _check_budget(plan: Plan, reason: str | None) -> None:
    """Raise if the token budget counted no padding, and the batches are padded after all."""
    if plan.splits.token_batches is not None and plan.splits.token_batches.padded is None:
        raise HftuneError(
            f"data.token_budget: padding does not count in it, and batches are padded: {reason}",
            hint="data.padding_free: false; then padding counts, and rows of like length come "
            "together",
        )
