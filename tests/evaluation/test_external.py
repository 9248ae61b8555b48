# SPDX-License-Identifier: Apache-2.0
"""Metrics of the ``evaluate`` library: objects, scripts, combinations, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

import hftune
from hftune.core.errors import HftuneError, RecipeError

evaluate = pytest.importorskip("evaluate")

SCRIPT = """
import datasets
import evaluate


class Agreement(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features(
                predictions=datasets.Value("int64"), references=datasets.Value("int64")
            ),
        )

    def _compute(self, predictions, references, scale=1):
        equal = sum(p == r for p, r in zip(predictions, references))
        return {"agreement": scale * equal / len(references), "rows": len(references)}
"""


class Misses(evaluate.Metric):
    """How many rows are wrong."""

    def _info(self) -> Any:
        features = datasets.Features(
            predictions=datasets.Value("int64"), references=datasets.Value("int64")
        )
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"misses": sum(p != r for p, r in zip(predictions, references, strict=True))}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "agreement.py"
    path.write_text(SCRIPT)
    return path


def test_objects_and_scripts_beside_our_own(
    make_recipe: Callable[..., Any], script: Path, labelled_file: Path
) -> None:
    asked = [Misses(), {"name": str(script), "scale": 100}]
    recipe = make_recipe(training={"metric_for_best_model": "misses", "greater_is_better": False})
    run = hftune.train(recipe, metrics=asked)
    figures = run.metrics
    rows = figures["eval_agreement_rows"]
    accuracy = figures["eval_accuracy"]
    assert figures["eval_agreement"] == pytest.approx(100 * accuracy)
    assert figures["eval_misses"] == pytest.approx(rows * (1 - accuracy))
    assert "eval_misses" in (run.path / "log.jsonl").read_text()

    found = hftune.evaluate(hftune.load(run.path), str(labelled_file), metrics=[Misses()])
    assert found["eval_misses"] == pytest.approx(
        found["eval_samples"] * (1 - found["eval_accuracy"])
    )


def test_a_recipe_alone_runs_no_script(make_recipe: Callable[..., Any], script: Path) -> None:
    recipe = make_recipe(evaluation={"metrics": [str(script)]})
    with pytest.raises(RecipeError, match="scripts that run on this machine") as caught:
        hftune.check(recipe)
    assert "--trust-metrics" in str(caught.value)
    hftune.check(recipe, metrics=recipe.evaluation.metrics)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["no_such_metric"], "no_such_metric"),
        (["./no/such/script.py"], "script"),
        ([{"average": "micro"}], "a name is missing"),
        ([Misses(), Misses()], "stands twice"),
    ],
)
def test_metrics_that_cannot_be_had(
    make_recipe: Callable[..., Any], asked: list[Any], message: str
) -> None:
    with pytest.raises(HftuneError, match=message):
        hftune.check(make_recipe(), metrics=asked)


def test_a_name_that_is_taken(make_recipe: Callable[..., Any]) -> None:
    with pytest.raises(HftuneError, match="accuracy is measured anyway"):
        hftune.check(make_recipe(), metrics=[type("accuracy", (Misses,), {})()])


def test_the_better_direction_must_be_said(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe(training={"metric_for_best_model": "misses"})
    with pytest.raises(RecipeError, match=r"greater_is_better: say whether a higher misses"):
        hftune.check(recipe, metrics=[Misses()])


def test_without_written_texts_there_is_nothing_to_judge(make_recipe: Callable[..., Any]) -> None:
    with pytest.raises(HftuneError, match="writes none") as caught:
        hftune.check(make_recipe("text-generation"), metrics=[Misses()])
    assert "evaluation.generation" in str(caught.value.hint)


class Judged(evaluate.Metric):
    """Keeps what it is handed, and counts it."""

    def __init__(self, feature: Any) -> None:
        self.feature = feature
        super().__init__()

    def _info(self) -> Any:
        features = datasets.Features(predictions=self.feature, references=self.feature)
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        self.pairs = list(zip(predictions, references, strict=True))
        return {"equal": sum(p == r for p, r in self.pairs) / len(self.pairs)}


def test_written_texts_are_judged(make_recipe: Callable[..., Any]) -> None:
    judge = Judged(datasets.Value("string"))
    recipe = make_recipe("text-generation", evaluation={"generation": {"max_new_tokens": 4}})
    run = hftune.train(recipe, metrics=[judge])
    assert run.metrics["eval_judged_equal"] == run.metrics["eval_exact_match"]
    samples = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    first = next(sample for sample in samples if sample["final"])
    assert judge.pairs[0] == (first["prediction"], first["reference"])


def test_tags_are_judged(make_recipe: Callable[..., Any]) -> None:
    judge = Judged(datasets.Sequence(datasets.Value("string")))
    run = hftune.train(make_recipe("token-classification"), metrics=[judge])
    tags = [(p, r) for ours, given in judge.pairs for p, r in zip(ours, given, strict=True)]
    right = sum(p == r for p, r in tags) / len(tags)
    assert run.metrics["eval_accuracy"] == pytest.approx(right)
