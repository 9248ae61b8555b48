# SPDX-License-Identifier: Apache-2.0
"""Streaming into the cache gives the tokens of encoding at once, and is found again."""

from pathlib import Path

import pytest
from datasets import Dataset

from hftune.models.load import load_tokenizer
from hftune.tasks.text_classification import TextClassification
from hftune.training.plan import preprocess as encode
from hftune.training.plan.preprocess import encode_part


def test_streamed_like_at_once(
    tmp_path: Path, tiny_encoder: Path, labelled_rows: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path))
    task, tokenizer = TextClassification(), load_tokenizer(str(tiny_encoder), None)
    rows = task.select(Dataset.from_list(labelled_rows), {"text": "text", "label": "label"})
    rows = rows.select([*range(30, 60), *range(0, 30, 2)])
    task.learn(rows, None)
    whole = encode_part(task, rows, tokenizer, 5)
    assert whole.cut > 0
    monkeypatch.setattr(encode, "AT_ONCE", 10)
    monkeypatch.setattr(encode, "CHUNK", 7)
    for _ in range(2):
        streamed = encode_part(task, rows, tokenizer, 5)
        assert streamed.rows.to_list() == whole.rows.to_list()
        assert (streamed.cut, streamed.lengths) == (whole.cut, whole.lengths)
    assert len(list((tmp_path / "tokens").glob("*.arrow"))) == 1
    encode_part(task, rows, tokenizer, 6)
    encode_part(task, rows.select(range(40)), tokenizer, 5)
    assert len(list((tmp_path / "tokens").glob("*.arrow"))) == 3
    sample = encode_part(task, rows, tokenizer, 5, sample=8)
    assert (len(sample.rows), sample.num_rows) == (8, 45)


def test_the_same_rows_are_found_in_another_run(
    tmp_path: Path, tiny_encoder: Path, labelled_rows: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics have another address in each process, and a tokenizer remembers how it cut."""
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(encode, "AT_ONCE", 10)
    tokenizer = load_tokenizer(str(tiny_encoder), None)
    for metric in (object(), object()):
        task = TextClassification()
        task.external_metrics = [metric]  # type: ignore[list-item]
        rows = task.select(Dataset.from_list(labelled_rows), {"text": "text", "label": "label"})
        task.learn(rows, None)
        encode_part(task, rows, tokenizer, 5)
    assert len(list((tmp_path / "tokens").glob("*.arrow"))) == 1
