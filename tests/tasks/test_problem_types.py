# SPDX-License-Identifier: Apache-2.0
"""Labels of the three kinds: what is read, what is guessed, what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.metrics import f1_score

from hftune.core.errors import HftuneError
from hftune.tasks.problem_types import problem_type_of
from hftune.tasks.problem_types.contract import LabelSet
from hftune.tasks.problem_types.multi_label import as_thresholds, best_f1_thresholds
from hftune.tasks.text_classification import TextClassification
from hftune.training.sources import hold_out

COLUMNS = {"text": "text", "label": "label"}
MULTI, NUMBER = "multi_label_classification", "regression"


def selected(task: TextClassification, labels: list[Any], features: Any = None) -> list[Any]:
    rows = Dataset.from_dict(
        {"text": [f"text {i}" for i in range(len(labels))], "label": labels}, features=features
    )
    return task.select(rows, COLUMNS)["label"][:]


@pytest.mark.parametrize(
    ("labels", "separator", "kind"),
    [
        (["a", "b"], None, "single_label_classification"),
        ([1, 2, 2], None, "single_label_classification"),
        ([1.0, 2.0], None, "single_label_classification"),
        (["1", "2.5"], None, NUMBER),
        ([0.5, 1.0, None], None, NUMBER),
        (["1.5", "x"], None, "single_label_classification"),
        (["1.5", "nan"], None, "single_label_classification"),
        ([["a"], []], None, MULTI),
        (["a|b", "c"], "|", MULTI),
    ],
)
def test_guess(labels: list[Any], separator: str | None, kind: str) -> None:
    assert problem_type_of(Dataset.from_dict({"label": labels}), "label", separator) == kind


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        ([["a", "b"], [], ["b"]], None),
        (['["a", "b"]', "[]", '["b"]'], None),
        (["a | b", "", "b"], "|"),
    ],
    ids=["lists", "json", "separator"],
)
def test_notations_of_several_labels(cells: list[Any], separator: str | None) -> None:
    task = TextClassification(problem_type=MULTI, label_separator=separator)
    assert selected(task, cells) == [["a", "b"], [], ["b"]]


def test_class_labels_inside_lists() -> None:
    features = Features(text=Value("string"), label=List(ClassLabel(names=["x", "y"])))
    assert selected(TextClassification(), [[1, 0], [1]], features) == [["y", "x"], ["y"]]


@pytest.mark.parametrize(
    ("cells", "separator", "message"),
    [
        (['["a"]', "b, c"], None, r"row 2 is no list of labels: 'b, c'"),
        (["['a']", "[]"], None, r"row 1 is no list in JSON"),
        (["a|b", "c|c"], "|", r"row 2 has a label twice"),
    ],
)
def test_bad_cells_name_their_row(cells: list[Any], separator: str | None, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        selected(TextClassification(problem_type=MULTI, label_separator=separator), cells)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (['["a"]', '["b", "c"]', "[]"], MULTI),
        (["['a']", "b"], MULTI),  # read, and refused, as such
        (["[UNK]", "[PAD]"], "single_label_classification"),
        (["a[1]", "[1] b"], "single_label_classification"),
    ],
)
def test_lists_written_as_text(cells: list[str], kind: str) -> None:
    assert problem_type_of(Dataset.from_dict({"label": cells}), "label", None) == kind


def test_numbers_with_a_name_among_them_are_asked_about() -> None:
    cells = ["1.5", "2.5", "", "much", "3.5"]
    rows = Dataset.from_dict({"label": cells})
    with pytest.raises(HftuneError, match=r"row 4 is no finite number: 'much', and others are"):
        problem_type_of(rows, "label", None)
    assert problem_type_of(rows, "label", None, named=True) == "single_label_classification"
    task = TextClassification(problem_type="single_label_classification")
    assert selected(task, ["1.5", "2.5", "much"]) == ["1.5", "2.5", "much"]


@pytest.mark.parametrize(
    ("cells", "separator", "hint"),
    [
        ([[0, 1, 0], [1, 0, 0]], None, r"\[1\] for \[0, 1, 0\]"),
        ([["a"], None], None, r"write \[\] for a row without labels"),
        ([[["a"]]], None, "a list holds texts or whole numbers"),
        (["a,b", '["a", "b"]'], ",", "a list needs no data.label_separator"),
    ],
)
def test_a_hint_for_each_notation(cells: list[Any], separator: str | None, hint: str) -> None:
    with pytest.raises(HftuneError, match=hint):
        selected(TextClassification(problem_type=MULTI, label_separator=separator), cells)


def test_targets_far_from_the_start_are_remarked() -> None:
    def remarks(labels: list[float]) -> list[str]:
        rows = Dataset.from_dict({"text": ["a"] * len(labels), "label": labels})
        return TextClassification(problem_type=NUMBER).remarks(rows)

    assert remarks([-1.0, 2.0, 8.0]) == []
    assert "mean 2000 and standard deviation 1000" in remarks([1000.0, 3000.0])[0]
    assert len(remarks([500.0, 501.0])) == len(remarks([0.001, 0.002])) == 1


def test_few_numbers_can_be_split() -> None:
    """Ten strata of one row each could give none away."""
    rows = Dataset.from_dict({"text": list("abcdefgh"), "label": [n / 10 for n in range(8)]})
    kept, held_out = hold_out(rows, TextClassification(problem_type=NUMBER), 0.25, seed=0)
    assert len(held_out) == 2
    assert sorted([*kept, *held_out]) == list(range(8))


@pytest.mark.parametrize("target", [None, "", float("nan")])
def test_a_missing_target_names_its_row(target: Any) -> None:
    others = "1.5" if target == "" else 1.5
    with pytest.raises(HftuneError, match=r"row 2 has no number\nleave the row out"):
        selected(TextClassification(problem_type=NUMBER), [others, target])


def test_a_target_that_is_text_names_its_row() -> None:
    with pytest.raises(HftuneError, match=r"row 3 is no finite number: 'much'"):
        selected(TextClassification(problem_type=NUMBER), ["1", "2.5", "much"])


def test_numbers_that_do_not_vary() -> None:
    task = TextClassification(problem_type=NUMBER)
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["2.5", "2.5"]})
    with pytest.raises(HftuneError, match=r"every target is 2\.5"):
        task.learn(task.select(rows, COLUMNS), None)


def test_encoding_counts_and_strata() -> None:
    task = TextClassification(problem_type=MULTI)
    labels = [["a", "c"], [], ["a"], ["b", "a"]]
    kind, rows = task.kind, Dataset.from_dict({"label": labels})
    assert kind.names(rows) == ["a", "b", "c"]
    encoded = kind.encode(labels, ["a", "b", "c"])
    assert encoded == [[1, 0, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert kind.counts(encoded, 3).tolist() == [3, 1, 1]
    assert list(kind.strata(rows)) == ["c", "", "a", "b"]


def test_thresholds_decide() -> None:
    task = TextClassification(["a", "b"], problem_type=MULTI, thresholds={"b": 0.9})
    logits = torch.tensor([0.1, 2.0])  # probabilities of 0.52 and 0.88
    known = LabelSet(["a", "b"], as_thresholds(task.thresholds, ["a", "b"]))
    answer = task.kind.answer(logits, known)
    assert answer["prediction"] == ["a"]
    assert answer["scores"] == pytest.approx({"a": 0.52498, "b": 0.88080}, abs=1e-5)


@pytest.mark.parametrize("given", [{"c": 0.5}, 1.0, {"a": 0.0}])
def test_bad_thresholds(given: Any) -> None:
    with pytest.raises(HftuneError, match=r"evaluation\.thresholds"):
        as_thresholds(given, ["a", "b"])


def test_best_thresholds_are_those_of_a_search() -> None:
    generator = np.random.default_rng(3)
    labels = (generator.random((50, 2)) < [0.3, 0.6]).astype(float)
    scores = generator.normal(size=(50, 2)) + labels
    found = best_f1_thresholds(scores, labels)
    shares = 1 / (1 + np.exp(-scores))
    for index in range(2):
        best = max(f1_score(labels[:, index], shares[:, index] >= t) for t in shares[:, index])
        reached = f1_score(labels[:, index], shares[:, index] >= found[index])
        assert reached == pytest.approx(best)


def test_thresholds_found_are_remembered() -> None:
    task = TextClassification(["a", "b"], problem_type=MULTI, thresholds="best_f1")
    kept = {"scores": np.array([[0.0, -3.0], [1.0, 3.0]]), "labels": np.array([[0, 0], [1, 1.0]])}
    before = task.metrics(kept)["f1_macro"]
    task.calibrate(kept)
    assert task.metrics(kept)["f1_macro"] == 1.0 > before
    again = TextClassification(**task.options())
    assert again.metrics(kept)["f1_macro"] == 1.0
