# SPDX-License-Identifier: Apache-2.0
"""Run a method that is fitted on features, without a Trainer.

The run folder is the same as after training, without checkpoints.
"""

import dataclasses
import json

from hftune.core.files import atomic_write, atomic_write_json
from hftune.core.registry import Choice, named
from hftune.hub.model_card import model_card
from hftune.methods import method_row
from hftune.methods.runner import FitRows, Fitting
from hftune.models.save import save_model
from hftune.report.summary import print_fit
from hftune.runs.run import Run, choose_folder, environment, locked_run_folder
from hftune.tasks import TASKS
from hftune.training.begin import write_story
from hftune.training.finish import model_metadata
from hftune.training.plan.plan import Plan

#: One process without mixed precision, in the terms of ``environment.json``.
ALONE = {"mixed_precision": "no", "distribution": {"type": "NO", "machines": 1}}


def prepare_runner(plan: Plan) -> Fitting | None:
    """Return the checked fit of a method that needs no Trainer; None if the Trainer trains it.

    Raises:
        HftuneError: The method does not fit the rows.
    """
    runner = method_row(plan.settings.recipe.method.name).runner
    if runner is None:
        return None
    splits, objective = plan.splits, plan.objective
    rows = FitRows(
        examples=splits.examples.train,
        train=splits.train.dataset,
        validation=None if splits.validation is None else splits.validation.dataset,
    )
    fitting: Fitting = named(runner)(objective.method, objective.task, rows, plan.context())
    return fitting


def run_fit(plan: Plan, fitting: Fitting) -> Run:
    """Fit the method and write the run folder."""
    settings, processor = plan.settings, plan.pretrained.processor
    folder = choose_folder(settings.recipe)
    method = Choice(name=settings.recipe.method.name, options=dict(fitting.options))
    with locked_run_folder(folder):
        run = Run(folder)
        facts = environment(settings.arguments, **ALONE)
        write_story(plan, folder, facts, settings.recipe.to_yaml(method=method))
        fitted = fitting.fit()
        lines = [json.dumps({"step": step, **one}) for step, one in enumerate(fitted.tried, 1)]
        atomic_write(folder / "log.jsonl", "".join(f"{line}\n" for line in lines))
        atomic_write_json(folder / "metrics.json", fitted.figures)
        metadata = dataclasses.replace(
            model_metadata(plan, fitted.base_fingerprint), probe=fitted.model.metadata()
        )
        card = model_card(metadata, fitted.figures, adapter=True)
        save_model(run.model_path, fitted.model, processor, metadata, card)
        print_fit(folder, fitted.figures, TASKS[settings.recipe.task].example_file)
    return run
