# SPDX-License-Identifier: Apache-2.0
"""Labels of the three kinds: what is read, what is guessed, what is refused."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.metrics import f1_score

from hftune.core.errors import HftuneError
from hftune.tasks.problem_types import problem_type_of
from hftune.tasks.problem_types.multi_label import as_thresholds, best_f1_thresholds
from hftune.tasks.problem_types.problem_type import LabelSet
from hftune.tasks.text_classification import TextClassification
from hftune.training.plan.sources import hold_out

COLUMNS = {"text": "text", "label": "label"}
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NUMBER = "regression"


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
        task.fit_labels(task.select(rows, COLUMNS), None)


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


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        ("ab", None, [0.5, 0.5]),
        ("ab", "best_f1", [0.5, 0.5]),  # until they are known
        ("ab", 0.3, [0.7, 0.3]),
        ("ab", {"a": 0.3}, [0.3, 0.7]),
        ("ab", {"a": 0.3, "b": 0.4}, [0.3, 0.4]),
        ("abcd", {"c": 0.1}, [0.25, 0.25, 0.1, 0.25]),
    ],
)
def test_thresholds_of_classes_that_compete(names: str, given: Any, expected: list[float]) -> None:
    kind = TextClassification(list(names), problem_type=SINGLE).kind
    assert kind.thresholds(given, list(names)).tolist() == pytest.approx(expected)


def test_the_highest_probability_over_threshold_wins() -> None:
    task = TextClassification(["a", "b", "c"], problem_type=SINGLE, thresholds={"c": 0.1})
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    logits, known = shares.log() + 3.0, LabelSet(["a", "b", "c"], np.array([1 / 3, 1 / 3, 0.1]))
    told = [task.kind.answer(row, known) for row in logits]
    assert [answer["prediction"] for answer in told] == ["c", "a", "b"]
    assert told[0]["score"] == pytest.approx(0.2)  # of what is given, not the highest
    kept = {"scores": logits.numpy(), "labels": np.array([2, 0, 0])}
    assert task.predictions_and_references(kept) == ([2, 0, 1], [2, 0, 0])
    figures, plain = task.metrics(kept), TextClassification(["a", "b", "c"], problem_type=SINGLE)
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["loss"] == plain.metrics(kept)["loss"]
    assert figures["roc_auc"] == plain.metrics(kept)["roc_auc"]
    assert task.per_class(kept)["c"] == {
        "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1.0, "threshold": 0.1,
    }  # fmt: skip
    assert "threshold" not in plain.per_class(kept)["c"]


@pytest.mark.parametrize(
    ("kind", "names", "given", "message"),
    [
        (SINGLE, "abc", 0.3, "the second of two classes, and there are 3"),
        (SINGLE, "ab", {"c": 0.3}, "unknown labels c"),
        (SINGLE, "ab", 1.0, "between 0 and 1"),
        (NUMBER, "", 0.3, "numbers are not decided"),
    ],
)
def test_thresholds_that_decide_nothing(kind: str, names: str, given: Any, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        TextClassification(problem_type=kind).kind.thresholds(given, list(names))


def test_a_prior_corrects_all_but_the_loss() -> None:
    """Shares of .8 and .2 in training, of .5 each in use: odds rise by four."""
    task = TextClassification(["a", "b"], problem_type=SINGLE, prior={"b": 0.5, "a": 0.5})
    task.learn_prior([0.8, 0.2])
    again = TextClassification(**json.loads(json.dumps(task.options())))
    logits = torch.tensor([[0.75, 0.25], [0.9, 0.1]]).log()
    kept = {"scores": logits.numpy(), "labels": np.array([1, 0])}
    plain = TextClassification(["a", "b"], problem_type=SINGLE)
    for corrected in (task, again):
        answer = corrected.kind.answer(logits[0], corrected._known())
        assert answer["prediction"] == "b"
        assert answer["scores"]["b"] == pytest.approx(4 * 0.25 / (4 * 0.25 + 0.75))
        assert corrected.metrics(kept)["accuracy"] == 1.0
        assert corrected.metrics(kept)["loss"] == plain.metrics(kept)["loss"]
    assert plain.metrics(kept)["accuracy"] == 0.5


def test_a_prior_goes_with_one_label_a_text() -> None:
    task = TextClassification(problem_type=MULTI, prior="uniform")
    with pytest.raises(HftuneError, match=r"evaluation\.prior: it goes with one label a text"):
        task.fit_labels(Dataset.from_dict({"label": [["a"], ["b"]]}), None)


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_thresholds_found_for_classes_are_remembered(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(3, 90, p=[0.8, 0.15, 0.05])
    scores = generator.normal(size=(90, 3)) + np.log([0.8, 0.15, 0.05]) + np.eye(3)[labels]
    kept = {"scores": scores, "labels": np.eye(3)[labels] if kind == MULTI else labels}
    task = TextClassification(["a", "b", "c"], problem_type=kind, thresholds="best_f1")
    before = task.metrics(kept)["f1_macro"]
    task.calibrate(kept)
    said = " ".join(capsys.readouterr().err.split())
    assert "fewer than 20 validation rows chose the thresholds of b, c: mostly chance" in said
    reached = task.metrics(kept)["f1_macro"]
    assert reached > before
    again = TextClassification(**json.loads(json.dumps(task.options())))
    assert again.metrics(kept)["f1_macro"] == reached


def test_thresholds_found_are_remembered() -> None:
    task = TextClassification(["a", "b"], problem_type=MULTI, thresholds="best_f1")
    kept = {"scores": np.array([[0.0, -3.0], [1.0, 3.0]]), "labels": np.array([[0, 0], [1, 1.0]])}
    before = task.metrics(kept)["f1_macro"]
    task.calibrate(kept)
    assert task.metrics(kept)["f1_macro"] == 1.0 > before
    again = TextClassification(**task.options())
    assert again.metrics(kept)["f1_macro"] == 1.0
