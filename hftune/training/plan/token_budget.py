# SPDX-License-Identifier: Apache-2.0
"""Build the batches of ``data.token_budget``: count tokens and refuse rows that do not fit."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from hftune.core.errors import HftuneError
from hftune.data.arrow import column_array, lengths
from hftune.data.packing import Ints
from hftune.data.sampling.row_sampler import RowSampler
from hftune.methods import method_row
from hftune.recipe.recipe import Recipe
from hftune.speed.padding_free import never_packed
from hftune.tasks.processed import ProcessedDataset
from hftune.training.plan.settings import Settings
from hftune.training.sampling.seeded_sampler import SeededSampler, Strategy
from hftune.training.sampling.token_batches import TokenBatches


def token_batches(
    settings: Settings,
    splits: Sequence[ProcessedDataset],
    row_sampler: RowSampler | None,
    model: nn.Module,
    *,
    targets: bool,
) -> TokenBatches:
    """Return the batches of a run with ``data.token_budget``.

    Args:
        settings: The recipe names the budget.
        splits: Preprocessed training rows.
        row_sampler: Chooses the rows of an epoch; None if each row comes once.
        model: The run's model, with or without weights.
        targets: Whether a decoder reads the targets in addition to the inputs.

    Raises:
        HftuneError: Rows are longer than the budget.
    """
    recipe, arguments = settings.recipe, settings.arguments
    budget, virtual = recipe.data.token_budget, virtual_tokens(recipe)
    assert budget is not None
    sizes = np.concatenate([_sizes(split.dataset, targets=targets) for split in splits])
    sizes[:, 0] += virtual
    _check_rows(sizes, budget, virtual)
    rows = sum(split.num_rows for split in splits) if row_sampler is None else row_sampler.size
    sampled = any(split.sampled_from is not None for split in splits)
    strategy = cast(Strategy, arguments.train_sampling_strategy)
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    order = SeededSampler(len(sizes), strategy, seed, row_sampler=None if sampled else row_sampler)
    return TokenBatches(
        sizes,
        budget,
        order,
        arguments,
        padded=always_padded(settings, model),
        share=rows / order.size,
    )


def _sizes(rows: Dataset, *, targets: bool) -> Ints:
    """Return the number of tokens of each row, and of its targets if a decoder reads them."""
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
    """Return the reason why a run needs padded batches, if any."""
    if arguments.torch_compile:
        return "a compiled model has to have batches of few shapes"
    if recipe.regularization.drop_path:
        return "drop_path leaves out layers row by row"
    return None


def always_padded(settings: Settings, model: nn.Module) -> str | None:
    """Return the reason why batches are padded, as far as it is known without weights.

    Args:
        settings: Settings of the run.
        model: The model without weights, or the user's own.
    """
    recipe, method = settings.recipe, settings.recipe.method.name
    if recipe.data.padding_free is False:
        return "data.padding_free: false"
    if method_row(method).virtual_tokens == "cache":
        return f"the virtual tokens of {method} are not packed"
    if recipe.distillation is not None and recipe.distillation.looks_inside:
        return "the teacher's layers are looked at"
    attention = recipe.model.attention
    if attention not in (None, "sdpa"):
        return f"only sdpa's attention is packed, not {attention}"
    return padded_by_run(recipe, settings.arguments) or never_packed(model)


def virtual_tokens(recipe: Recipe) -> int:
    """Return the number of virtual tokens that the method puts before each row."""
    if method_row(recipe.method.name).virtual_tokens is None:
        return 0
    return int(recipe.method.options.get("num_virtual_tokens") or 0)
