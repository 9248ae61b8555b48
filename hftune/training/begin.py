# SPDX-License-Identifier: Apache-2.0
"""The run folder before the first step: choose it and write recipe, environment and data."""

from pathlib import Path
from typing import Any

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write, atomic_write_json
from hftune.core.processes import on_main_process
from hftune.recipe.recipe import Recipe
from hftune.runs.run import RECIPE_FILE, Run, choose_folder, environment
from hftune.training.distributed.launcher import Launch
from hftune.training.distributed.sharding import (
    describe_environment,
    distribution,
    precision_in_force,
)
from hftune.training.load_model import LoadedModel
from hftune.training.plan.plan import Plan
from hftune.training.plan.resume import check_resumed, check_resumed_base
from hftune.training.trainer import HftuneTrainer


def agreed_folder(plan: Plan, resume: bool) -> Path:
    """Return the run folder; the main process chooses it, and all processes share its failure.

    Raises:
        HftuneError: The folder is in use, or holds no run to resume.
    """
    settings = plan.settings
    if resume:
        return on_main_process(
            settings.arguments, lambda: _resumed_folder(settings.recipe, settings.launch)
        )
    return on_main_process(settings.arguments, lambda: choose_folder(settings.recipe))


def begin(
    plan: Plan, loaded: LoadedModel, trainer: HftuneTrainer, folder: Path, resume: bool
) -> None:
    """Write recipe, environment and data of a new run, or check the base of a resumed one.

    Raises:
        HftuneError: The resumed run began with other weights.
    """
    settings = plan.settings
    if resume:
        check_resumed_base(folder, settings.recipe.model.path, loaded.base_fingerprint)
    elif settings.arguments.process_index == 0:
        _write_start(plan, loaded, trainer, folder)


def write_story(plan: Plan, folder: Path, environment: dict[str, Any], resolved: str) -> None:
    """Write recipe, environment and data.

    Args:
        plan: The run.
        folder: The run folder.
        environment: Content of ``environment.json``.
        resolved: The recipe as YAML, with all defaults filled in.
    """
    atomic_write(folder / RECIPE_FILE, f"# {describe_environment(environment)}\n{resolved}")
    atomic_write_json(folder / "environment.json", environment)
    atomic_write_json(folder / "data.json", plan.report())
    say(f"run folder: {folder}")


def _write_start(plan: Plan, loaded: LoadedModel, trainer: HftuneTrainer, folder: Path) -> None:
    accelerator, arguments = trainer.accelerator, plan.settings.arguments
    facts = environment(
        arguments, **precision_in_force(accelerator), distribution=distribution(accelerator)
    )
    if loaded.base_fingerprint is not None:
        facts["base_fingerprint"] = loaded.base_fingerprint
    in_force: dict[str, Any] = {name: facts["mixed_precision"] == name for name in ("bf16", "fp16")}
    if arguments.metric_for_best_model is not None:
        in_force["metric_for_best_model"] = arguments.metric_for_best_model
        in_force["greater_is_better"] = arguments.greater_is_better
    resolved = plan.settings.recipe.to_yaml(plan.objective.loss_choice, **in_force)
    write_story(plan, folder, facts, resolved)


def _resumed_folder(recipe: Recipe, launch: Launch) -> Path:
    folder = None
    if recipe.origin is not None and recipe.origin.name == RECIPE_FILE:
        folder = recipe.origin.parent
    elif recipe.training.get("output_dir"):
        folder = Path(recipe.training["output_dir"])
    if folder is None:
        raise HftuneError(
            "--resume continues a run, and this recipe does not lie in a run folder",
            hint="hftune train runs/NAME --resume",
        )
    if Run(folder).model_path.exists():
        raise HftuneError(f"{folder}: the run is finished; there is nothing to resume")
    check_resumed(folder, launch)
    return folder
