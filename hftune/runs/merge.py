# SPDX-License-Identifier: Apache-2.0
"""Finished runs of one base as one plain model."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.methods import method_row
from hftune.methods.merging import merged
from hftune.methods.peft_tuners import register_tuners
from hftune.models.adapter import is_adapter
from hftune.models.combine import combine
from hftune.models.load import load_base, load_saved, pretrained_path
from hftune.models.sample_logits import logits_of
from hftune.models.save import ModelMetadata
from hftune.runs.run import Run

#: What runs must share to be added up: field of the metadata -> what it is called.
SHARED = {
    "task": "task",
    "base_model": "base model",
    "base_revision": "revision of the base model",
    "label_names": "labels",
    "num_labels": "number of outputs",
    "classifier_pooling": "classifier_pooling",
    "config": "model.config",
}
#: A merge that changes logits by more than this share of the largest is told.
LARGE_CHANGE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How the differences of runs to their base are added up.

    Attributes:
        name: One of :data:`hftune.models.combine.COMBINATIONS`.
        weights: One for each run.
        density: Share of the entries that stays; None where all do.
        seed: Of the entries that are left out at random.
    """

    name: str
    weights: Sequence[float]
    density: float | None
    seed: int

    @property
    def is_one(self) -> bool:
        """Whether it is one run as it is."""
        return list(self.weights) == [1.0]


def merge_runs(runs: Sequence[Run], how: Combination) -> tuple[Any, ModelMetadata]:
    """Return a model without adapters, in float32, and the metadata that go with it.

    Args:
        runs: Checked by :func:`check_runs`.
        how: Weights of the runs, and the entries that stay.

    Raises:
        HftuneError: Shapes differ, or the weights leave nothing of a new head.
    """
    metadata = _plain_metadata(runs)
    register_tuners()
    if how.is_one:
        return _merged(runs[0], checked=True), metadata
    model, new = load_base(metadata, runs[0].task.auto_model)
    if new and not math.isclose(sum(how.weights), 0, abs_tol=1e-9):
        _say_heads(new)
    elif new:
        raise HftuneError("--weights: they add up to 0, which leaves nothing of the new head")
    parts = [_merged(run).state_dict() for run in runs]
    own = model.state_dict()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(how.seed)
        for name, value in combine(
            own, parts, how.weights, new=set(new), combination=how.name, density=how.density or 1.0
        ):
            own[name].copy_(value)
    return model, metadata


def check_runs(runs: Sequence[Run]) -> None:
    """Raise if a run cannot be merged, or the runs do not go together."""
    for run in runs:
        metadata = run.metadata
        method = metadata.method
        if (why := method_row(method).no_merge) is not None:
            raise HftuneError(
                f"{run.path}: {method} {why}, so it cannot be merged into its base",
                hint=f"the model card in {run.model_path} tells how to load it as it is",
            )
    first = runs[0]
    for run in runs[1:]:
        for field, name in SHARED.items():
            mine, other = getattr(first.metadata, field), getattr(run.metadata, field)
            if mine != other:
                raise HftuneError(
                    f"{first.path} and {run.path} have another {name}: {mine} and {other}",
                    hint="only runs from one base, for one task with the same labels, add up",
                )
        problem_types = [one.metadata.task_options.get("problem_type") for one in (first, run)]
        if problem_types[0] != problem_types[1]:
            raise HftuneError(
                f"{first.path} and {run.path} have another problem type: "
                f"{problem_types[0]} and {problem_types[1]}"
            )


def base_dtype(run: Run) -> torch.dtype:
    """Return the type of the weights in the checkpoint of the base."""
    adapter = is_adapter(run.model_path)
    place = pretrained_path(run.metadata.base_model) if adapter else str(run.model_path)
    config = AutoConfig.from_pretrained(
        place, revision=run.metadata.base_revision if adapter else None
    )
    return config.dtype or torch.float32


def _merged(run: Run, *, checked: bool = False) -> Any:
    """A run's model without an adapter, in float32."""
    metadata = dataclasses.replace(run.metadata, quantization=None)
    if run.metadata.quantization is not None:
        warn(
            f"{run.path} was trained on quantized weights: its adapter goes into the whole ones, "
            "so logits differ by the rounding of the base"
        )
    model = load_saved(run.model_path, metadata, run.task.auto_model)
    if not is_adapter(run.model_path):
        return model
    if not checked:
        return merged(model, metadata.method)
    rows = run.task.sample_inputs(run.processor)
    before = logits_of(model, rows)
    plain = merged(model, metadata.method)
    after = logits_of(plain, rows)
    change = max(
        ((after[row] - due).abs().max() / (1 + due.abs().max())).item()
        for row, due in before.items()
    )
    tell = warn if change > LARGE_CHANGE else say
    tell(f"merging changes logits by {change:.0e} of the largest at most")
    return plain


def _plain_metadata(runs: Sequence[Run]) -> ModelMetadata:
    """What the plain model must remember."""
    metadata = dataclasses.replace(runs[0].metadata, quantization=None, tuner_module=None)
    if len(runs) == 1:
        return metadata
    options = dict(metadata.task_options)
    if options.pop("thresholds", None) is not None:
        say("thresholds belong to each run; the combined model has none of its own")
    methods = sorted({run.metadata.method for run in runs})
    return dataclasses.replace(metadata, method=" and ".join(methods), task_options=options)


def _say_heads(new: Sequence[str]) -> None:
    modules = sorted({name.rpartition(".")[0] for name in new})
    say(f"not in the base, so averaged by the weights: {', '.join(modules)}")
