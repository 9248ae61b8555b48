# SPDX-License-Identifier: Apache-2.0
"""Texts become tokens and labels become numbers, and rows that cannot are named."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, BertConfig, LlamaConfig

from hftune.core.errors import HftuneError
from hftune.tasks.problem_types.problem_type import label_order
from hftune.tasks.text_classification import TextClassification

COLUMNS = {"text": "text", "label": "label"}


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_encoder)


def rows(labels: list[Any], features: Features | None = None) -> Dataset:
    """One row a label."""
    texts = [f"alpha {index}" for index in range(len(labels))]
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def learned(labels: list[Any], features: Features | None = None) -> TextClassification:
    task = TextClassification()
    task.fit_labels(task.select(rows(labels, features), COLUMNS), None)
    return task


def class_labels(names: list[str]) -> Features:
    return Features({"text": Value("string"), "label": ClassLabel(names=names)})


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2, 9], ["2", "9", "10"]),
        (["10", "9", "-1.5", "x", "y", "z"], ["-1.5", "9", "10", "x", "y", "z"]),
        (["pear", "apple", "fig"], ["apple", "fig", "pear"]),
        (["b", "10", "a", "2"], ["2", "10", "a", "b"]),
        ([True, False, True], ["False", "True"]),
        ([2.0, 1.0, 10.0], ["1", "2", "10"]),
        (["1.0", "2"], ["1.0", "2"]),
    ],
)
def testlabel_order(labels: list[Any], names: list[str]) -> None:
    assert learned(labels).label_names == names


def testlabel_order_does_not_depend_on_the_order_of_rows() -> None:
    labels = ["1", "nan", "2", "NaN", "01", "b"]
    orders = {
        tuple(sorted(shuffled, key=label_order)) for shuffled in itertools.permutations(labels)
    }
    assert len(orders) == 1


def test_class_label_names_keep_their_order() -> None:
    features = class_labels(["zebra", "ant", "never seen"])
    assert learned([1, 0, 1], features).label_names == ["zebra", "ant", "never seen"]


def test_declared_names_are_those_of_the_training_rows() -> None:
    task = TextClassification()
    train = task.select(rows(["a", "b", "c"]), COLUMNS)
    validation = task.select(rows([0, 1], class_labels(["b", "a"])), COLUMNS)
    task.fit_labels(train, validation)
    assert task.label_names == ["a", "b", "c"]


def test_names_given_before_are_kept() -> None:
    task = TextClassification(["b", "a"])
    task.fit_labels(task.select(rows(["a", "a"]), COLUMNS), None)
    assert task.label_names == ["b", "a"]


@pytest.mark.parametrize("nothing", [None, math.nan, ""])
def test_missing_labels_name_their_rows(nothing: Any) -> None:
    value = "x" if nothing == "" else 1.0
    labels = [value] * 12
    labels[2] = labels[4] = nothing
    with pytest.raises(HftuneError, match=r"column 'label': no label in row 3, 5\n"):
        TextClassification().select(rows(labels), COLUMNS)
    labels[:7] = [nothing] * 7
    with pytest.raises(HftuneError, match=r"no label in row 1, 2, 3, 4, 5 and 2 more\n"):
        TextClassification().select(rows(labels), COLUMNS)


def test_hidden_class_labels_name_their_rows() -> None:
    with pytest.raises(HftuneError, match=r"no label in row 2, 3\n"):
        TextClassification().select(rows([0, -1, None], class_labels(["a", "b"])), COLUMNS)


@pytest.mark.parametrize(
    ("labels", "kinds"), [([0.5, 1.0], "float"), ([["a"], ["b"]], "list")], ids=["float", "list"]
)
def test_labels_of_the_wrong_kind(labels: list[Any], kinds: str) -> None:
    task = TextClassification(problem_type="single_label_classification")
    with pytest.raises(HftuneError, match=f"a label is text or a whole number, not {kinds}"):
        task.select(rows(labels), COLUMNS)


def test_one_class_only() -> None:
    with pytest.raises(HftuneError, match=r"one class only: every label is 'x'"):
        learned(["x", "x", "x"])


def test_unknown_labels_in_validation() -> None:
    task = TextClassification()
    train, validation = (task.select(rows(labels), COLUMNS) for labels in (["a", "b"], ["z", "c"]))
    expected = (
        "the validation rows have labels that training does not know: c, z; row 1 has the first\n"
    )
    with pytest.raises(HftuneError, match=f"{expected}known labels: a, b"):
        task.fit_labels(train, validation)


def test_labels_that_the_list_lacks() -> None:
    task = TextClassification(["a", "b"])
    with pytest.raises(
        HftuneError, match=r"data.label_names lacks 'z', the label of training row 2"
    ):
        task.fit_labels(task.select(rows(["a", "z"]), COLUMNS), None)


def test_text_that_is_no_text() -> None:
    numbers = Dataset.from_dict({"body": [1, 2], "label": ["a", "b"]})
    with pytest.raises(HftuneError, match=r"column 'body': row 1 is not text but 1"):
        TextClassification().select(numbers, {"text": "body", "label": "label"})
    lists = Dataset.from_dict({"body": [None, ["x"]], "label": ["a", "b"]})
    with pytest.raises(HftuneError, match=re.escape("column 'body': row 2 is not text but ['x']")):
        TextClassification().select(lists, {"text": "body", "label": "label"})


def test_all_texts_empty() -> None:
    empty = Dataset.from_dict({"text": ["", None, "  "], "label": ["a", "b", "a"]})
    with pytest.raises(HftuneError, match=r"column 'text': all 3 texts are empty"):
        TextClassification().select(empty, COLUMNS)


def test_a_missing_text_is_an_empty_one() -> None:
    some = Dataset.from_dict({"text": ["red", None], "label": ["a", "b"]})
    assert TextClassification().select(some, COLUMNS)["text"][:] == ["red", ""]


def pairs() -> Dataset:
    columns = {"text": ["red", "one two three"], "other": ["green blue", None], "label": ["a", "b"]}
    return Dataset.from_dict(columns)


def test_pairs_use_both_texts_and_token_types(tiny_encoder: Path) -> None:
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder, model_input_names=inputs)
    task = TextClassification()
    selected = task.select(pairs(), {**COLUMNS, "text_pair": "other"})
    task.fit_labels(selected, None)
    encoded = task.preprocess(selected, tokenizer, None).dataset
    assert tokenizer.decode(encoded[0]["input_ids"]) == "[CLS] red [SEP] green blue [SEP]"
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 1, 1, 1]
    assert tokenizer.decode(encoded[1]["input_ids"]) == "[CLS] one two three [SEP] [SEP]"
    assert encoded[1]["token_type_ids"] == [0, 0, 0, 0, 0, 1]


def test_split_keys_hold_both_texts() -> None:
    task = TextClassification()
    selected = task.select(pairs(), {**COLUMNS, "text_pair": "other"})
    keys, strata = task.split_keys(selected)
    assert keys[0] != keys[1]
    assert strata == ["a", "b"]
    rows = {"text": ["red"] * 3, "other": ["x", "y", "x"], "label": ["a"] * 3}
    selected = task.select(Dataset.from_dict(rows), {**COLUMNS, "text_pair": "other"})
    keys, _ = task.split_keys(selected)
    assert keys[0] == keys[2] != keys[1]


def test_split_keys_hold_texts_and_groups() -> None:
    task = TextClassification()
    rows = {"text": ["x", "y", "x", "z"], "label": ["a"] * 4, "team": [1, 2, 2, 3]}
    selected = task.select(Dataset.from_dict(rows), {**COLUMNS, "group": "team"})
    keys, _ = task.split_keys(selected)
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_encoding(tokenizer: Any, labelled_rows: list[dict[str, str]]) -> None:
    task = TextClassification()
    selected = task.select(Dataset.from_list(labelled_rows), COLUMNS)
    task.fit_labels(selected, None)
    encoded = task.preprocess(selected, tokenizer, None)
    for row, source in zip(encoded.dataset, labelled_rows, strict=True):
        assert tokenizer.decode(row["input_ids"]) == f"[CLS] {source['text']} [SEP]"
        assert task.label_names[row["labels"]] == source["label"]
    assert (encoded.num_truncated, encoded.num_without_labels) == (0, 0)
    assert encoded.sizes == [len(row["text"].split()) + 2 for row in labelled_rows]
    assert task.class_counts(encoded.dataset, 3).tolist() == [10, 20, 30]
    assert task.classes(tokenizer, 3) == ["blue", "green", "red"]


def test_cut_is_counted_and_cut(tokenizer: Any) -> None:
    task = TextClassification(["a", "b"])
    texts = ["one", "one two", "one two three four"]
    selected = Dataset.from_dict({"text": texts, "label": ["a", "b", "a"]})
    encoded = task.preprocess(selected, tokenizer, 4)
    assert encoded.num_truncated == 1
    assert encoded.sizes == [3, 4, 6]
    decoded = [tokenizer.decode(ids) for ids in encoded.dataset["input_ids"]]
    assert decoded == ["[CLS] one [SEP]", "[CLS] one two [SEP]", "[CLS] one two [SEP]"]


def test_rows_to_predict_have_no_labels(tokenizer: Any) -> None:
    task = TextClassification(["a", "b"])
    selected = task.select(Dataset.from_dict({"text": ["red"]}), {"text": "text"})
    assert "labels" not in task.preprocess(selected, tokenizer, None).dataset.column_names


def test_collator_pads_to_the_longest_row(tokenizer: Any) -> None:
    task = TextClassification(["a", "b"])
    selected = Dataset.from_dict({"text": ["one", "one two three"], "label": ["a", "b"]})
    encoded = task.preprocess(selected, tokenizer, None).dataset
    batch = task.collator(tokenizer)(list(encoded))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert (batch["input_ids"][0, 3:] == tokenizer.pad_token_id).all()
    assert batch["labels"].tolist() == [0, 1]


def test_configure(tokenizer: Any) -> None:
    task = TextClassification(["b", "a"])
    config = BertConfig()
    task.configure(config, tokenizer)
    assert config.num_labels == 2
    assert config.id2label == {0: "b", 1: "a"}
    assert config.label2id == {"b": 0, "a": 1}
    decoder = LlamaConfig()
    assert decoder.pad_token_id is None
    task.configure(decoder, tokenizer)
    assert decoder.pad_token_id == tokenizer.pad_token_id


def test_what_evaluation_keeps() -> None:
    task = TextClassification(["a", "b"], problem_type="single_label_classification")
    logits = torch.randn(3, 2).bfloat16()
    labels = torch.tensor([0, 1, 1])
    kept = task.eval_outputs(logits, labels)
    assert kept["scores"].dtype == torch.float32
    assert torch.equal(kept["scores"], logits.float())
    arrays = {name: value.numpy() for name, value in kept.items()}
    assert list(task.per_class(arrays)) == ["a", "b"]
    right = (logits.float().argmax(1) == labels).float().mean().item()
    assert task.metrics(arrays)["accuracy"] == pytest.approx(right)
    assert task.predictions_and_references(arrays) == (logits.argmax(1).tolist(), [0, 1, 1])
