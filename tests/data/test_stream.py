# SPDX-License-Identifier: Apache-2.0
"""A stream gives the rows that a table gives, and names the line of a broken one."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hftune.core.errors import HftuneError, RunError
from hftune.data.source_files import read_files
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
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a.jsonl:2: broken json: the line ends too soon"),
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


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_packed_files_are_read_and_a_cut_one_is_told(tmp_path: Path, kind: str) -> None:
    table = Dataset.from_dict({"id": [str(n) for n in range(4000)], "text": ["\u00e9\nx"] * 4000})
    file, packed = tmp_path / f"a.{kind}", tmp_path / f"a.{kind}.gz"
    if kind == "csv":
        table.to_csv(file)
    else:
        table.to_json(file)
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert rows_of(packed) == rows_of(file)
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(RunError, match=rf"a\.{kind}\.gz: damaged gzip after line \d+"):
        rows_of(packed)


def test_an_empty_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(HftuneError, match="the file is empty"):
        stream_files([tmp_path / "empty.jsonl"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ('{"a": ', "the line ends too soon, at character 5"),
        ('{"a" 1}', "Expecting ':' delimiter at character 6"),
        ("[1]", r"a row is an object, not \[1\]"),
    ],
)
def test_a_broken_line_is_told_as_in_a_table(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 0}\n\n' + line + "\n")
    for read in (lambda: rows_of(file), lambda: read_files([file])):
        with pytest.raises(HftuneError, match=rf"a\.jsonl:3: .*{says}"):
            read()
