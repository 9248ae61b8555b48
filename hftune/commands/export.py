# SPDX-License-Identifier: Apache-2.0
"""``hftune export``: one finished run, or several of one base, as a plain Transformers model."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.hub.model_card import model_card
from hftune.hub.reload_check import logits_of, probe_ids
from hftune.methods import method_row
from hftune.methods.merging import merged
from hftune.methods.peft_tuners import register_tuners
from hftune.models.adapter import is_adapter
from hftune.models.combine import COMBINATIONS, combine
from hftune.models.load import load_base, load_saved, pretrained_path
from hftune.models.save import ModelMetadata, save_model
from hftune.runs.run import Run, load

DTYPES = ("auto", "float32", "bfloat16", "float16")
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


def export(
    runs: Run | str | Path | Sequence[Run | str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    combination: str = "linear",
    density: float | None = None,
    dtype: str = "auto",
    seed: int = 42,
) -> Run:
    """Write a plain Transformers model: adapters merged into their base, several runs added up.

    Args:
        runs: A finished run, or several that were trained from the same base.
        output: The folder for the model, empty or new.
        weights: How much of each run's difference to the base is taken; equal parts of one if not
            given.
        combination: ``linear`` adds the differences up; ``magnitude_prune``, ``ties``,
            ``dare_linear`` and ``dare_ties`` leave some of their entries out, as in PEFT.
        density: The share of the entries that stays, in (0, 1]; for all but ``linear``.
        dtype: Type of the saved weights; ``auto`` is that of the base's checkpoint.
        seed: Of the entries that DARE leaves out.

    Returns:
        The model's folder as a run, to evaluate, predict with or push.

    Raises:
        HftuneError: A run is not finished or cannot be merged, or the runs do not go together.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    all_runs = [run if isinstance(run, Run) else load(run) for run in given]
    folder = Path(output)
    _check_output(folder)
    shares = _weights(weights, len(all_runs))
    _check_runs(all_runs)
    _check_options(combination, density, dtype)

    metadata = _facts(all_runs)
    plain = all_runs[0].task.auto_model
    register_tuners()
    if len(all_runs) == 1 and shares == [1.0]:
        model = _merged(all_runs[0], checked=True)
    else:
        model, new = load_base(metadata, plain)
        if new and not math.isclose(sum(shares), 0, abs_tol=1e-9):
            _say_heads(new)
        elif new:
            raise HftuneError("--weights: they add up to 0, which leaves nothing of the new head")
        parts = [_merged(run).state_dict() for run in all_runs]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            own = model.state_dict()
            for name, value in combine(
                own, parts, shares, new=set(new), combination=combination, density=density or 1.0
            ):
                own[name].copy_(value)
    model.to(_dtype(dtype, all_runs[0]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    card = _card(metadata, all_runs, shares, combination, density)
    save_model(folder, model, all_runs[0].tokenizer, metadata, card)
    say(f"model: {folder}, {str(model.dtype).removeprefix('torch.')}")
    return Run(folder)


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
    ids = probe_ids(run.tokenizer)
    decodes = metadata.task == "text2text-generation"
    before = logits_of(model, ids, decodes=decodes)
    plain = merged(model, metadata.method)
    after = logits_of(plain, ids, decodes=decodes)
    change = max(
        ((after[row] - due).abs().max() / (1 + due.abs().max())).item()
        for row, due in before.items()
    )
    tell = warn if change > LARGE_CHANGE else say
    tell(f"merging changes logits by {change:.0e} of the largest at most")
    return plain


def _check_output(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise HftuneError(f"--output: {folder} is there already", hint="name a new folder")


def _weights(given: Sequence[float] | None, runs: int) -> list[float]:
    if runs == 0:
        raise HftuneError("no run is given")
    if given is None:
        return [1 / runs] * runs
    if len(given) != runs:
        raise HftuneError(f"--weights: {len(given)} for {runs} runs; give one for each")
    if not all(map(math.isfinite, given)) or not any(given):
        raise HftuneError("--weights: they must be finite, and not all 0")
    return [float(weight) for weight in given]


def _check_options(combination: str, density: float | None, dtype: str) -> None:
    if combination not in COMBINATIONS:
        raise HftuneError(
            f"--combination: unknown {combination!r}", hint=f"one of {', '.join(COMBINATIONS)}"
        )
    if (density is None) != (combination == "linear"):
        needs = "needs" if density is None else "has no"
        raise HftuneError(f"--combination: {combination} {needs} --density")
    if density is not None and not 0 < density <= 1:
        raise HftuneError(f"--density: a share above 0 and at most 1, not {density}")
    if dtype not in DTYPES:
        raise HftuneError(f"--dtype: unknown {dtype!r}", hint=f"one of {', '.join(DTYPES)}")


def _check_runs(runs: Sequence[Run]) -> None:
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


def _facts(runs: Sequence[Run]) -> ModelMetadata:
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


def _dtype(given: str, run: Run) -> torch.dtype:
    if given != "auto":
        dtype: torch.dtype = getattr(torch, given)
        return dtype
    adapter = is_adapter(run.model_path)
    place = pretrained_path(run.metadata.base_model) if adapter else str(run.model_path)
    config = AutoConfig.from_pretrained(
        place, revision=run.metadata.base_revision if adapter else None
    )
    return config.dtype or torch.float32


def _card(
    metadata: ModelMetadata,
    runs: Sequence[Run],
    weights: Sequence[float],
    combination: str,
    density: float | None,
) -> str:
    one = len(runs) == 1 and weights[0] == 1
    known = one and (runs[0].path / "metrics.json").exists()
    card = model_card(metadata, runs[0].metrics if known else {}, adapter=False)
    if one:
        return card
    how = combination if density is None else f"{combination}, density {density:g}"
    parts = [
        f"- {weight:g} of `{run.path.name}`" for run, weight in zip(runs, weights, strict=True)
    ]
    return f"{card}\n## Made of\n\nDifferences to the base, combined ({how}):\n\n" + "\n".join(
        [*parts, ""]
    )
