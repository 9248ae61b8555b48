# SPDX-License-Identifier: Apache-2.0
"""``hftune lr_find``: a range test of the learning rate."""

from pathlib import Path

from datasets import Dataset
from torch import nn

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.losses.loss import Loss
from hftune.methods import method_row
from hftune.optimization.lr_sweep_reading import RangeTest
from hftune.optimization.optimizers import DEFAULT, OPTIMIZERS
from hftune.recipe.recipe import Recipe
from hftune.report.lr_sweep_plot import draw_range_test
from hftune.training.lr_sweep import LEAST, sweep
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare

PICTURES = (".png", ".svg", ".pdf")
SHOWN = 10


def lr_find(
    recipe: Recipe,
    *,
    start: float = 1e-7,
    end: float = 1.0,
    steps: int = 100,
    plot: str | Path | None = None,
    train_dataset: Dataset | None = None,
    model: nn.Module | None = None,
    loss: Loss | None = None,
) -> RangeTest:
    """Raise the learning rate at each step, record the loss, and suggest a rate.

    Nothing is saved: there is no run folder. The weights are discarded; those of your own model are
    restored.

    Args:
        recipe: The recipe.
        start: The first rate.
        end: The last rate; the sweep stops earlier if the loss diverges.
        steps: Number of optimizer steps.
        plot: File for a picture of the curve.
        train_dataset: Rows in place of ``data.path``.
        model: Your own model, in place of ``model.path`` and its method.
        loss: Your own loss.

    Returns:
        The curve and the suggested rate.

    Raises:
        HftuneError: The recipe or an argument is wrong, or the optimizer has no rate to sweep.
        RunError: The loss diverges at once.
    """
    path = None if plot is None else Path(plot)
    _check(recipe, start, end, steps, path)
    plan = prepare(recipe, train_dataset=train_dataset, loss=loss, own_model=model)
    _begin(plan, start, end, steps)
    found = sweep(plan, start=start, end=end, steps=steps, model=model)
    _report(found, plan, path)
    return found


def _check(recipe: Recipe, start: float, end: float, steps: int, path: Path | None) -> None:
    if not 0 < start < end:
        raise HftuneError(f"--start, --end: {start:g} to {end:g} does not rise from above 0")
    if steps < 2 * LEAST:
        raise HftuneError(f"--steps: {steps} are too few to see anything; at least {2 * LEAST}")
    if path is not None and path.suffix not in PICTURES:
        raise HftuneError(f"{path}: no picture", hint=f"endings: {', '.join(PICTURES)}")
    if path is not None and not path.parent.is_dir():
        raise HftuneError(f"{path}: {path.parent} is no folder")
    if method_row(recipe.method.name).fitted:
        raise HftuneError(f"a {recipe.method.name} has no learning rate")
    optim = recipe.training.get("optim", DEFAULT)
    row = OPTIMIZERS[optim]
    if row.full_batch or row.in_backward:
        why = "takes steps of its own length" if row.full_batch else "steps in the backward"
        raise HftuneError(f"training.optim: {optim} {why}, so there is no rate to sweep")


def _begin(plan: Plan, start: float, end: float, steps: int) -> None:
    if plan.settings.arguments.world_size > 1:
        raise HftuneError("lr_find runs in one process", hint="leave out the launcher")
    say(f"range test: {steps} optimizer steps, rates {start:.1e} to {end:.1e}; nothing is saved")


def _report(found: RangeTest, plan: Plan, path: Path | None) -> None:
    _say_curve(found)
    given: float = plan.settings.recipe.training["learning_rate"]
    _say_suggestion(found, given, scaled=plan.settings.arguments.learning_rate / given)
    if path is not None:
        draw_range_test(found, path)
        say(f"picture: {path}")


def _say_curve(found: RangeTest) -> None:
    say("      rate   loss")
    every = max(1, len(found.rates) // SHOWN)
    for rate, loss in list(zip(found.rates, found.smoothed, strict=True))[::every]:
        say(f"  {rate:8.1e}   {loss:.4f}")
    if found.diverged is not None:
        say(f"stopped at {found.diverged:.1e}, where the loss diverged")


def _say_suggestion(found: RangeTest, given: float, scaled: float) -> None:
    if found.suggestion is None:
        say("the loss did not fall, so there is nothing to suggest: sweep higher, or longer")
        return
    say(f"the loss fell until {found.lowest:.1e}, fastest at {found.suggestion:.1e}")
    written = found.suggestion / scaled
    say(f"suggestion: training.learning_rate={written:.1e}  (the recipe has {given:.1e})")
    if scaled != 1:
        say(f"learning_rate_scaling makes {found.suggestion:.1e} of it, as the sweep had it")
    say(
        "It bounds the rate from above: what the loss does not survive in these few steps it will "
        "hardly survive in a run. It says little of how low is too low, and each rate has seen one "
        "batch only. Try it beside half and twice as much."
    )
