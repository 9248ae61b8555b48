# SPDX-License-Identifier: Apache-2.0
"""Streaming into the cache gives the tokens of encoding at once, and is found again."""

from pathlib import Path

import pytest
from datasets import Dataset

from hftune.models.load import load_tokenizer
from hftune.tasks import preprocess as encode
from hftune.tasks.preprocess import preprocess_split
from hftune.tasks.text_classification import TextClassification


def test_streamed_like_at_once(
    tmp_path: Path, tiny_encoder: Path, labelled_rows: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path))
    task, tokenizer = TextClassification(), load_tokenizer(str(tiny_encoder), None)
    rows = task.select(Dataset.from_list(labelled_rows), {"text": "text", "label": "label"})
    rows = rows.select([*range(30, 60), *range(0, 30, 2)])
    task.fit_labels(rows, None)
    whole = preprocess_split(task, rows, tokenizer, 5)
    assert whole.num_truncated > 0
    monkeypatch.setattr(encode, "AT_ONCE", 10)
    monkeypatch.setattr(encode, "CHUNK", 7)
    for _ in range(2):
        streamed = preprocess_split(task, rows, tokenizer, 5)
        assert streamed.dataset.to_list() == whole.dataset.to_list()
        assert (streamed.num_truncated, streamed.sizes) == (whole.num_truncated, whole.sizes)
    assert len(list((tmp_path / "tokens").glob("*/*.arrow"))) == 1
    preprocess_split(task, rows, tokenizer, 6)
    preprocess_split(task, rows.select(range(40)), tokenizer, 5)
    assert len(list((tmp_path / "tokens").glob("*/*.arrow"))) == 3
    sample = preprocess_split(task, rows, tokenizer, 5, sample=8)
    assert (len(sample.dataset), sample.num_rows) == (8, 45)


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
        task.fit_labels(rows, None)
        preprocess_split(task, rows, tokenizer, 5)
    assert len(list((tmp_path / "tokens").glob("*/*.arrow"))) == 1
