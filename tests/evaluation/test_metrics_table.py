# SPDX-License-Identifier: Apache-2.0
"""Every metric of a task has a row, which says how it is compared."""

import pytest

from hftune.core.task_rows import PROBLEM_TYPES
from hftune.evaluation import METRICS, shown_metrics
from hftune.evaluation.generation_metrics import GENERATION_METRICS
from hftune.tasks import TASKS


@pytest.mark.parametrize("name", PROBLEM_TYPES)
def test_metrics_of_a_problem_type_have_rows(name: str) -> None:
    names = PROBLEM_TYPES[name].resolve().metric_names
    assert set(names) <= METRICS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_metrics_of_a_task_have_rows(name: str) -> None:
    task = TASKS[name].resolve()()
    assert {*task.metric_names, task.best_metric} <= METRICS.keys()
    task.label_names = ["O", "B-city"]  # tags that mark entities have other metrics
    assert {*task.metric_names, task.best_metric} <= METRICS.keys()


def test_written_texts_have_rows() -> None:
    assert set(GENERATION_METRICS) <= METRICS.keys()


def test_errors_are_better_when_they_are_low() -> None:
    low = {name for name, row in METRICS.items() if not row.higher_is_better}
    assert low == {"loss", "gap", "perplexity", "mse", "rmse", "mae", "hamming_loss"}


def test_the_gap_is_no_figure_of_the_model() -> None:
    assert "gap" in shown_metrics("summary")
    assert "gap" not in shown_metrics("card")
