# SPDX-License-Identifier: Apache-2.0
"""From ``data.token_budget`` to batches: which tokens count in it, and rows that do not fit."""

from typing import cast

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from hftune.core.errors import HftuneError
from hftune.data.arrow import column_array, lengths
from hftune.data.packing import Ints
from hftune.methods import method_row
from hftune.recipe.recipe import Recipe
from hftune.speed.padding_free import never_packed
from hftune.training.plan.plan import Plan
from hftune.training.sampling.seeded_sampler import SeededSampler, Strategy
from hftune.training.sampling.token_batches import TokenBatches


def token_batches(plan: Plan, model: nn.Module | None) -> TokenBatches | None:
    """Return the batches of a plan; None where a batch is a number of rows.

    Args:
        plan: Preprocessed, with what draws its rows.
        model: A model of one's own in place of the recipe's.

    Raises:
        HftuneError: Rows are longer than the budget.
    """
    budget = plan.recipe.data.token_budget
    if budget is None:
        return None
    parts = [plan.train] if plan.unlabelled is None else [plan.train, plan.unlabelled]
    virtual = virtual_tokens(plan.recipe)
    sizes = np.concatenate(
        [_sizes(part.dataset, targets=plan.config.is_encoder_decoder) for part in parts]
    )
    sizes[:, 0] += virtual
    _check_rows(sizes, budget, virtual)
    arguments, drawing = plan.arguments, plan.drawing
    whole = sum(part.num_rows for part in parts) if drawing is None else drawing.size
    sampled = any(part.sampled_from is not None for part in parts)
    order = SeededSampler(
        len(sizes),
        cast(Strategy, arguments.train_sampling_strategy),
        arguments.seed if arguments.data_seed is None else arguments.data_seed,
        drawing=None if sampled else drawing,
    )
    return TokenBatches(
        sizes,
        budget,
        order,
        arguments,
        padded=always_padded(plan, plan.skeleton() if model is None else model),
        share=whole / order.size,
    )


def _sizes(rows: Dataset, *, targets: bool) -> Ints:
    """Tokens of the rows, and of their targets where a decoder reads those beside them."""
    columns = ["input_ids", "labels"] if targets else ["input_ids"]
    return np.stack([lengths(column_array(rows, name)) for name in columns], axis=1)


def _check_rows(sizes: Ints, budget: int, virtual: int) -> None:
    tokens = sizes.sum(1)
    longer = int((tokens > budget).sum())
    if not longer:
        return
    rows = f"{longer:,} of {len(tokens):,} training rows"
    beside = f", {virtual} virtual ones among them" if virtual else ""
    cut = (
        f"data.max_length and data.max_target_length of together {budget} cut them"
        if sizes.shape[1] == 2
        else f"data.max_length: {budget - virtual} cuts them"
    )
    raise HftuneError(
        f"data.token_budget: {rows} {'is' if longer == 1 else 'are'} longer than {budget} tokens; "
        f"the longest has {tokens.max():,}{beside}",
        hint=f"a budget of {tokens.max()} or more" + ("" if budget <= virtual else f"; {cut}"),
    )


def padded_by_run(recipe: Recipe, arguments: TrainingArguments) -> str | None:
    """Return what in a run needs padded batches, if anything."""
    if arguments.torch_compile:
        return "a compiled model has to have batches of few shapes"
    if recipe.regularization.drop_path:
        return "drop_path leaves out layers row by row"
    return None


def always_padded(plan: Plan, model: nn.Module) -> str | None:
    """Return why batches are padded, if that can be told without weights.

    Args:
        plan: The run.
        model: Without weights, or one's own.
    """
    recipe, method = plan.recipe, plan.recipe.method.name
    if recipe.data.padding_free is False:
        return "data.padding_free: false"
    if method_row(method).virtual_tokens == "cache":
        return f"the virtual tokens of {method} are not packed"
    if recipe.distillation is not None and recipe.distillation.looks_inside:
        return "the teacher's layers are looked at"
    attention = recipe.model.attention
    if attention not in (None, "sdpa"):
        return f"only sdpa's attention is packed, not {attention}"
    return padded_by_run(recipe, plan.arguments) or never_packed(model)


def virtual_tokens(recipe: Recipe) -> int:
    """Return how many tokens the method puts before each row."""
    if method_row(recipe.method.name).virtual_tokens is None:
        return 0
    return int(recipe.method.options.get("num_virtual_tokens") or 0)
