# SPDX-License-Identifier: Apache-2.0
"""Cache the output of a run's frozen layers: compute it once a row, look it up in every step.

The cache key is a digest of everything that decides the output: weights and config of the frozen
part, number of layers, tokens of the rows, precision, device and versions.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn

from hftune.core import cached_arrays
from hftune.core.cached_arrays import MIB, ArrayLayout, CachedArrays
from hftune.core.console import number_of, say, warn
from hftune.core.errors import HftuneError
from hftune.core.processes import found_or_computed
from hftune.data.arrow import column_array, items, lengths
from hftune.losses import LOSSES
from hftune.methods.probe.features import features_key
from hftune.models.layer_stack import StackError, rows_to_try, takes
from hftune.regularization import REGULARIZATIONS
from hftune.speed.find_frozen_layers import find_frozen_layers, why_nothing_is_frozen
from hftune.speed.frozen_layers import TOKENS, FrozenLayers, row_digest, skip_frozen_layers
from hftune.tasks.inference import batches_by_length
from hftune.tasks.processors import as_tokenizer
from hftune.training.distributed.sharding import is_sharded
from hftune.training.plan.arguments import mixed_precision
from hftune.training.plan.plan import Plan
from hftune.training.trainer import HftuneTrainer

KEY = "data.cache_trunk"
KIND: Final = "trunk"
#: Part of the cache's key: raise it when states are computed differently.
STATES_VERSION = 2


@contextmanager
def cached_frozen_layers(plan: Plan, trainer: HftuneTrainer) -> Iterator[None]:
    """Run frozen layers once a row while the context lasts, if that is exact and saves time.

    Raises:
        HftuneError: ``data.cache_trunk`` is true, and the layers cannot be skipped.
    """
    wanted = plan.settings.recipe.data.cache_trunk
    with ExitStack() as stack:
        if wanted or (wanted is None and _passes(plan) > 1):
            with trainer.accelerator.autocast():  # the precision of the steps
                frozen_layers = _find_exact_layers(plan, trainer)
                kept = None if frozen_layers is None else _kept_states(plan, frozen_layers)
            if frozen_layers is not None and (kept is not None or not frozen_layers.exact):
                lookup = KeptStates() if kept is None else kept
                stack.enter_context(
                    skip_frozen_layers(frozen_layers, lookup, still=not frozen_layers.exact)
                )
        yield


class Tokens:
    """The tokens of rows, as frozen layers read them.

    Args:
        rows: Encoded rows.
        model: Its forward signature decides whether token types are read.
    """

    def __init__(self, rows: Dataset, model: nn.Module) -> None:
        taken = takes(model)
        names = [name for name in TOKENS if name in rows.column_names and name in taken]
        self.rows = rows.select_columns(names)
        self.columns = {
            name: items(column_array(rows, name)).astype(np.int64, copy=False) for name in names
        }

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each row, shape ``(N,)``."""
        return lengths(column_array(self.rows, TOKENS[0]))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Index of the first token of each row, and the number of all tokens, ``(N + 1,)``."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def digests(self) -> Iterator[bytes]:
        """Yield the digest of each row: its key in the lookup."""
        columns, starts = list(self.columns.values()), self.starts.tolist()
        for start, end in pairwise(starts):
            yield row_digest(*(column[start:end] for column in columns))

    def batch(self, rows: Sequence[int], padding: int, device: torch.device) -> dict[str, Tensor]:
        """Return a batch of rows, padded on the right."""
        sizes = self.lengths[rows]
        here = np.arange(sizes.max()) < sizes[:, None]
        made = {"attention_mask": here.astype(np.int64)}
        for name, column in self.columns.items():
            made[name] = np.full(here.shape, padding if name == TOKENS[0] else 0)
            made[name][here] = np.concatenate(
                [column[self.starts[row] : self.starts[row + 1]] for row in rows]
            )
        return {name: torch.from_numpy(values).to(device) for name, values in made.items()}


class KeptStates:
    """A lookup of states by the digests of rows; see :data:`hftune.speed.frozen_layers.Lookup`."""

    def __init__(self) -> None:
        self.places: dict[bytes, tuple[NDArray[Any], int, int]] = {}
        self.dtype = torch.float32

    def add(self, tokens: Tokens, kept: CachedArrays, dtype: torch.dtype) -> None:
        """Add rows.

        Args:
            tokens: Tokens of the rows.
            kept: States of the rows.
            dtype: Type of the states.
        """
        self.dtype = dtype
        states, starts = np.asarray(kept.parts["states"]), kept.starts.tolist()
        for row, digest in enumerate(tokens.digests()):
            self.places[digest] = states, starts[row], starts[row + 1]

    def __call__(self, rows: Sequence[bytes]) -> Tensor | None:
        """Return the states of rows; None if a row is unknown."""
        places = [self.places.get(row) for row in rows]
        known = [place for place in places if place is not None]
        if len(known) < len(places):
            return None
        found = np.concatenate([states[start:end] for states, start, end in known])
        return torch.from_numpy(found).view(self.dtype)


def _passes(plan: Plan) -> float:
    """Return how often training reads a row, on average."""
    training_steps, rows = plan.training_steps, plan.splits.train.num_rows
    if training_steps.per_epoch is None:
        return 1.0
    drawn = rows if plan.splits.row_sampler is None else plan.splits.row_sampler.size
    return training_steps.total / training_steps.per_epoch * drawn / rows


def _find_exact_layers(plan: Plan, trainer: HftuneTrainer) -> FrozenLayers | None:
    """Return the frozen layers that can be skipped.

    Return None and print the reason if there are none, or if skipping them would change results.
    """
    wanted, model = plan.settings.recipe.data.cache_trunk, cast(nn.Module, trainer.model)
    nothing, frozen_layers = why_nothing_is_frozen(model), None
    reason = nothing or _why_not(plan, trainer)
    if reason is None:
        try:
            frozen_layers = find_frozen_layers(model)
        except StackError as error:
            reason = str(error)
    if frozen_layers is not None and not frozen_layers.exact and not wanted:
        reason = f"they draw dropout in training; {KEY}: true runs them once and without it"
    if reason is None:
        return frozen_layers
    if wanted:
        raise HftuneError(f"{KEY}: {reason}", hint="leave it out, and layers run in every step")
    if not nothing:
        say(f"frozen layers run in every step: {reason}")
    return None


def _why_not(plan: Plan, trainer: HftuneTrainer) -> str | None:
    """Return the reason why a row does not always reach the first trained layer alike, if any."""
    arguments, loss = plan.settings.arguments, plan.objective.loss_choice
    regularization = plan.settings.recipe.regularization
    said = [
        key
        for key, row in REGULARIZATIONS.items()
        if row.moves_frozen and getattr(regularization, key)
    ]
    reasons = {
        "it is not tested with a sharded model": is_sharded(trainer.accelerator),
        "a compiled model cannot leave out layers": arguments.torch_compile,
        "the rows of a stream are read once": plan.splits.stream is not None,
        "training.neftune_noise_alpha moves the embeddings": bool(arguments.neftune_noise_alpha),
        f"regularization.{''.join(said[:1])} moves frozen layers, too": bool(said),
        "regularization.adversarial moves what the lowest layers read": (
            plan.settings.recipe.regularization.adversarial is not None
        ),
        "an evaluation in half precision has other states": (
            arguments.bf16_full_eval or arguments.fp16_full_eval
        ),
        f"{'' if loss is None else loss.name} mixes embeddings": (
            loss is not None and LOSSES[loss.name].mixes_inputs
        ),
        "a loss of one's own may look into the layers": loss is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _kept_states(plan: Plan, frozen_layers: FrozenLayers) -> KeptStates | None:
    """Return the states of all rows that are read more than once; None if the disk is full."""
    parts = [plan.splits.train, plan.splits.unlabelled]
    if (
        plan.settings.arguments.eval_strategy != "no"
    ):  # otherwise they are read only once, after training
        parts.append(plan.splits.validation)
    found, weights = KeptStates(), frozen_layers.fingerprint()
    with _in_evaluation(frozen_layers):
        like = frozen_layers.states(rows_to_try(frozen_layers.base))
        for part in parts:
            if part is None:
                continue
            tokens = Tokens(part.dataset, frozen_layers.base)
            kept = _kept(plan, frozen_layers, tokens, like, weights)
            if kept is None:
                return None
            found.add(tokens, kept, like.dtype)
    return found


@contextmanager
def _in_evaluation(frozen_layers: FrozenLayers) -> Iterator[None]:
    training = frozen_layers.base.training
    frozen_layers.base.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        frozen_layers.base.train(training)


def _kept(
    plan: Plan, frozen_layers: FrozenLayers, tokens: Tokens, like: Tensor, weights: str
) -> CachedArrays | None:
    """Return the states of one split, from the cache or computed now."""
    layout = ArrayLayout(
        KIND,
        np.arange(len(tokens) + 1) if frozen_layers.first_alone else tokens.starts,
        {"states": (np.dtype(str(_raw(like).dtype).removeprefix("torch.")), (like.shape[-1],))},
    )
    key = features_key(
        tokens.rows,
        trunk=STATES_VERSION,
        weights=weights,
        precision=[mixed_precision(plan.settings.arguments), str(like.dtype), like.device.type],
    )
    layers = f"{frozen_layers.frozen} of {len(frozen_layers.layers)} layers, frozen"
    rows = f"{number_of(len(tokens), 'row', 'rows')}, {layout.size / MIB:,.0f} MiB"

    def compute() -> None:
        say(f"{layers}: run once for {rows}")
        _compute(plan, frozen_layers, tokens, key, layout)

    return found_or_computed(
        plan.settings.arguments,
        lambda: cached_arrays.read_arrays(key, layout),
        compute,
        f"{layers}: {rows}, out of the cache",
    )


def _compute(
    plan: Plan, frozen_layers: FrozenLayers, tokens: Tokens, key: str, layout: ArrayLayout
) -> None:
    """Run the frozen layers over all rows, longest first, and store their output."""
    padding = as_tokenizer(plan.pretrained.processor).pad_token_id or 0

    def batches() -> Iterator[tuple[Sequence[int], dict[str, Tensor]]]:
        for rows in batches_by_length(
            tokens.lengths.tolist(),
            plan.settings.arguments.per_device_eval_batch_size,
            "running frozen layers",
        ):
            states = frozen_layers.states(tokens.batch(rows, padding, frozen_layers.base.device))
            yield rows, {"states": _raw(states)}

    trouble = layout.room()
    try:
        if trouble is None:
            cached_arrays.write_arrays(key, layout, batches())
    except OSError as error:
        trouble = str(error.strerror)
    if trouble is not None:
        warn(f"the states of frozen layers are not kept: {trouble}; they run in every step")


def _raw(states: Tensor) -> Tensor:
    """View two-byte types, such as bfloat16, as int16, since NumPy lacks bfloat16."""
    return states.contiguous().view(torch.int16) if states.dtype.itemsize == 2 else states
