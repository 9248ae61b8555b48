# SPDX-License-Identifier: Apache-2.0
"""A stream gives the rows that a table gives, and names the line of a broken one."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hftune.core.errors import HftuneError, RunError
from hftune.data.stream import PLACE, stream_files

TEXTS = ["naïve 😀", "two\nlines", 'a "quote", a comma', "NA", "007"]


def rows_of(*files: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != PLACE} for row in stream_files(list(files))]


def test_every_kind_gives_the_same_rows(tmp_path: Path) -> None:
    table = Dataset.from_dict({"id": [str(n) for n in range(5)], "text": TEXTS})
    jsonl, csv, parquet = (tmp_path / f"a.{kind}" for kind in ("jsonl", "csv", "parquet"))
    jsonl.write_text("\n".join(json.dumps(row) for row in table) + "\n\n")
    table.to_csv(csv)
    table.to_parquet(parquet)
    assert rows_of(jsonl) == rows_of(csv) == rows_of(parquet) == list(table)
    assert rows_of(jsonl, csv) == list(table) * 2
    lines = tmp_path / "a.txt"
    lines.write_text("one\n\n two\n")
    assert rows_of(lines) == [{"text": "one"}, {"text": " two"}]


def test_a_row_tells_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"b": 2}\n')
    assert [row[PLACE] for row in stream_files([file])] == [f"{file}:1", f"{file}:3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a.jsonl: broken json after line 1"),
        ("a.jsonl", b'{"a": 1}\n[2]\n', r"a.jsonl:2: a row is an object, not \[2\]"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a.jsonl: not UTF-8 after line 0"),
        ("a.csv", b"a,b\n1,2\n1\n", r"a.csv: broken csv after line 2: 1 cells below 2 columns"),
        ("a.parquet", b"PAR1", r"a.parquet: broken parquet"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        rows_of(tmp_path / name)


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(HftuneError, match=r"a.xlsx: this kind of file cannot be streamed"):
        stream_files([tmp_path / "a.xlsx"])
