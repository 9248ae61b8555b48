# SPDX-License-Identifier: Apache-2.0
"""The rows of the tasks say of the classes what these are."""

import inspect

import pytest

from hftune.data import DEMO_DATA
from hftune.models.demo_models import DEMO_MODELS
from hftune.tasks import TASKS, option_tasks

#: Arguments that a saved model remembers and no recipe says.
REMEMBERED = {"seen_prior"}


@pytest.mark.parametrize("name", TASKS)
def test_keys_are_the_arguments_of_the_class(name: str) -> None:
    arguments = set(inspect.signature(TASKS[name].resolve()).parameters) - REMEMBERED
    keys = {key.rpartition(".")[2] for key in TASKS[name].keys}
    labelled = {"label_names"} if TASKS[name].writes else set()  # texts have no labels
    assert keys == arguments - labelled


@pytest.mark.parametrize("name", TASKS)
def test_the_class_has_the_name_of_its_row(name: str) -> None:
    assert TASKS[name].resolve().name == name


@pytest.mark.parametrize("name", TASKS)
def test_a_row_without_a_demo_model_names_a_model(name: str) -> None:
    row = TASKS[name]
    assert row.model_hint
    assert row.demo_model is None or row.demo_model.removeprefix("demo:") in DEMO_MODELS


def test_keys_that_two_tasks_take_name_both() -> None:
    tasks = option_tasks()
    assert tasks["data.label_names"] == ("text-classification", "token-classification")
    assert tasks["data.block_size"] == ("text-generation",)


@pytest.mark.parametrize("row", DEMO_DATA.values())
def test_demo_columns_are_roles(row) -> None:
    for name, columns in row.columns.items():
        roles = {role.name for role in TASKS[name].resolve().roles}
        assert columns.keys() <= roles
