# SPDX-License-Identifier: Apache-2.0
"""``hftune export``: write one run, or several of one base, as a plain Transformers model."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.hub.model_card import model_card
from hftune.models.combine import COMBINATIONS
from hftune.models.save import ModelMetadata, save_model
from hftune.runs.merge import Combination, base_dtype, check_runs, merge_runs
from hftune.runs.run import Run, load

DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    """Write a plain Transformers model: merge adapters into their base, and combine runs.

    Args:
        runs: A finished run, or several that were trained from the same base.
        output: The folder for the model, empty or new.
        weights: Factors for each run's difference to the base; equal shares of 1 if None.
        combination: ``linear`` adds the differences up; ``magnitude_prune``, ``ties``,
            ``dare_linear`` and ``dare_ties`` leave some of their entries out, as in PEFT.
        density: The share of the entries that stays, in (0, 1]; for all but ``linear``.
        dtype: Type of the saved weights; ``auto`` is that of the base's checkpoint.
        seed: Seed for the entries that DARE leaves out.

    Returns:
        The model's folder as a run, to evaluate, predict with or push.

    Raises:
        HftuneError: A run is not finished or cannot be merged, or the runs cannot be combined.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    all_runs = [run if isinstance(run, Run) else load(run) for run in given]
    _check_output(Path(output))
    shares = _weights(weights, len(all_runs))
    how = Combination(name=combination, weights=shares, density=density, seed=seed)
    return _write(all_runs, how, dtype, Path(output))


def _write(runs: Sequence[Run], how: Combination, dtype: str, folder: Path) -> Run:
    """Merge the runs, and write the model."""
    check_runs(runs)
    _check_options(how.name, how.density, dtype)
    model, metadata = merge_runs(runs, how)
    model.to(base_dtype(runs[0]) if dtype == "auto" else getattr(torch, dtype))
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, runs[0].processor, metadata, _card(metadata, runs, how))
    say(f"model: {folder}, {str(model.dtype).removeprefix('torch.')}")
    return Run(folder)


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


def _card(metadata: ModelMetadata, runs: Sequence[Run], how: Combination) -> str:
    one = how.is_one
    known = one and (runs[0].path / "metrics.json").exists()
    card = model_card(metadata, runs[0].metrics if known else {}, adapter=False)
    if one:
        return card
    words = how.name if how.density is None else f"{how.name}, density {how.density:g}"
    parts = [
        f"- {weight:g} of `{run.path.name}`" for run, weight in zip(runs, how.weights, strict=True)
    ]
    return f"{card}\n## Made of\n\nDifferences to the base, combined ({words}):\n\n" + "\n".join(
        [*parts, ""]
    )
