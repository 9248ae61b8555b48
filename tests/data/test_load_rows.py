# SPDX-License-Identifier: Apache-2.0
"""Rows survive reading unchanged, and every broken source is named with its place."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from hftune.core.errors import HftuneError
from hftune.data import docstrings
from hftune.data.load_rows import load_split, load_splits
from hftune.data.source_files import source_files

Write = Callable[[str, str | bytes], str]
ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below the test's folder and return its path."""

    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Any) -> list[dict[str, Any]]:
    return load_split(path).to_list()


def refusal(path: Any) -> str:
    """Return the message, without the folder that differs from run to run."""
    with pytest.raises(HftuneError, match=r".") as caught:
        load_split(path)
    first = path[-1] if isinstance(path, list) else path
    return str(caught.value).replace(f"{Path(first).parent}/", "")


# What survives


def test_csv_cells_stay_text(write: Write) -> None:
    path = write("a.csv", "text,label\nNA,007\n2024-01-01,1.50\n,null\n true ,1e3\n")
    assert read(path) == [
        {"text": "NA", "label": "007"},
        {"text": "2024-01-01", "label": "1.50"},
        {"text": "", "label": "null"},
        {"text": " true ", "label": "1e3"},
    ]


def test_csv_quotes(write: Write) -> None:
    path = write("a.csv", 'text,label\r\n"two\nlines, and ""quotes""",x\r\n"a\r\nb",y\r\n')
    assert [row["text"] for row in read(path)] == ['two\nlines, and "quotes"', "a\r\nb"]


def test_csv_cell_beyond_a_mebibyte(write: Write) -> None:
    long = "word " * 300_000
    assert read(write("a.csv", f'text,label\nshort,x\n"{long}",y\n'))[1]["text"] == long


def test_csv_quoted_newlines_across_blocks(write: Write) -> None:
    texts = [f"first {index}\n{'x' * (index % 90)}\nlast" for index in range(30_000)]
    cells = "".join(f'"{text}"\n' for text in texts)
    assert [row["text"] for row in read(write("a.csv", "text\n" + cells))] == texts


def test_csv_quoted_column_name(write: Write) -> None:
    assert read(write("a.csv", '"the text, whole",label\na,x\n')) == [
        {"the text, whole": "a", "label": "x"}
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_byte_order_mark(write: Write, name: str) -> None:
    content = "text,label\na,x\nb,y\n" if name.endswith("csv") else jsonl(ROWS)
    assert read(write(name, "\ufeff" + content)) == ROWS


def test_jsonl_missing_keys_blank_lines_and_no_last_newline(write: Write) -> None:
    path = write("a.jsonl", '{"a": 1}\n\n{"b": "x", "a": null}\n   \n{"a": 2.5}')
    assert read(path) == [{"a": 1.0, "b": None}, {"a": None, "b": "x"}, {"a": 2.5, "b": None}]


def test_jsonl_keeps_odd_text_and_nesting(write: Write) -> None:
    rows = [{"m": [{"role": "user", "content": "line\u2028break\x85 and 😀"}]}, {"m": []}]
    assert read(write("a.jsonl", jsonl(rows))) == rows
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert read(write("b.jsonl", plain)) == rows


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None], "label": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")) == table.to_pylist()


def test_glob_in_the_order_of_names(write: Write, tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        write(f"part-{name}.jsonl", jsonl([{"text": name}]))
    write("other.jsonl", jsonl([{"text": "no"}]))
    assert [row["text"] for row in read(str(tmp_path / "part-*.jsonl"))] == ["a", "b", "c"]


def test_name_that_looks_like_a_glob(write: Write) -> None:
    assert read(write("a[1].jsonl", jsonl(ROWS))) == ROWS


def test_list_in_its_own_order_across_kinds(write: Write) -> None:
    paths = [write("b.jsonl", jsonl(ROWS)), write("a.csv", "text,label\nc,z\n")]
    assert read(paths) == [*ROWS, {"text": "c", "label": "z"}]
    assert source_files(paths) == [Path(path) for path in paths]


def test_list_with_integers_and_floats(write: Write) -> None:
    paths = [write("a.jsonl", '{"y": 1}\n'), write("b.jsonl", '{"y": 0.5}\n')]
    assert read(paths) == [{"y": 1.0}, {"y": 0.5}]


def test_list_whose_files_name_the_keys_in_another_order(write: Write) -> None:
    paths = [write("a.jsonl", '{"t": "a", "y": 1}\n'), write("b.jsonl", '{"y": 2, "t": "b"}\n')]
    assert read(paths) == [{"t": "a", "y": 1}, {"t": "b", "y": 2}]


def test_saved_dataset(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    train, validation = load_splits(str(tmp_path / "saved"))
    assert train.to_list() == ROWS
    assert validation is None
    with pytest.raises(HftuneError, match=r"data\.split: .*saved has no splits"):
        load_splits(str(tmp_path / "saved"), split="train")


@pytest.fixture
def saved_parts(tmp_path: Path) -> str:
    """A DatasetDict whose splits hold their own names."""
    names = ["train", "validation", "test", "extra"]
    parts = {name: Dataset.from_dict({"text": [name]}) for name in names}
    DatasetDict(parts).save_to_disk(tmp_path / "parts")
    return str(tmp_path / "parts")


@pytest.mark.parametrize(
    ("validation", "split", "expected"),
    [
        (None, None, ("train", "validation")),
        (None, "extra", ("extra", None)),
        ("test", None, ("train", "test")),
        ("extra", None, ("train", "extra")),
        ("test", "extra", ("extra", "test")),
    ],
)
def test_saved_splits(
    saved_parts: str, validation: str | None, split: str | None, expected: tuple[str, str | None]
) -> None:
    train, held_out = load_splits(saved_parts, validation, split=split)
    found = train["text"][0], None if held_out is None else held_out["text"][0]
    assert found == expected


def test_one_part_of_saved_splits(saved_parts: str) -> None:
    assert load_split(saved_parts)["text"][:] == ["test"]
    assert load_split(saved_parts, "extra")["text"][:] == ["extra"]


def test_validation_from_a_file(write: Write, saved_parts: str) -> None:
    held_out = write("held.jsonl", jsonl([{"text": "held"}]))
    for path in (write("a.jsonl", jsonl(ROWS)), saved_parts):
        assert load_splits(path, held_out)[1].to_list() == [{"text": "held"}]
        assert load_splits(path, [held_out, held_out])[1].num_rows == 2


def test_demo_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"signature": "def f()", "summary": "Do it.", "package": "p"}]
    monkeypatch.setattr(docstrings, "docstring_rows", lambda: rows)
    (row,) = load_split("demo:docstrings").to_list()
    question, answer = row.pop("messages")
    assert (row.pop("tokens"), row.pop("tags")) == (["def", "f", "(", ")"], ["O"] * 4)
    assert row == rows[0]
    assert question["role"] == "user"
    assert question["content"].endswith("def f()")
    assert answer == {"role": "assistant", "content": "Do it."}
    assert source_files("demo:docstrings") == []


# What is refused


def test_missing_file_names_its_neighbours(write: Write, tmp_path: Path) -> None:
    write("train.csv", "a\n1\n")
    write("dev.jsonl", "{}\n")
    write("notes.txt", "")
    missing = str(tmp_path / "trian.csv")
    names = "dev.jsonl, notes.txt, train.csv"
    assert refusal(missing) == f"trian.csv: no such file\nfiles in {tmp_path}: {names}"
    with pytest.raises(HftuneError, match=r"the folder .*/nowhere does not exist either"):
        load_split(str(tmp_path / "nowhere" / "a.csv"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_empty_file(write: Write, suffix: str) -> None:
    assert refusal(write(f"a{suffix}", "")) == f"a{suffix}: the file is empty"


def test_no_rows(write: Write, tmp_path: Path) -> None:
    assert refusal(write("a.csv", "text,label\n")) == "a.csv: no rows"
    assert refusal(write("a.jsonl", "\n \n")) == "a.jsonl: no rows"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert refusal(str(tmp_path / "a.parquet")) == "a.parquet: no rows"


def test_saved_part_without_rows(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_list(ROWS), "test": Dataset.from_dict({"text": []})}
    DatasetDict(parts).save_to_disk(tmp_path / "parts")
    with pytest.raises(HftuneError, match=r"parts"):
        load_split(str(tmp_path / "parts"))


@pytest.mark.parametrize("content", ["\ufeff", "\n", "\r\n\r\n", "text,label"])
def test_csv_without_a_line_of_cells(write: Write, content: str) -> None:
    path = write("a.csv", content)
    with pytest.raises(HftuneError, match=r"a\.csv: "):
        load_split(path)


def test_glob_without_match(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "*.csv")) == "*.csv: the glob matches no file"


MEBIBYTE = 2**20


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"text\ncaf\xe9 au lait\n", 8),
        ("text\ngrün ".encode() + b"\xff\n", 11),
        (b"a" * MEBIBYTE + b"\xe9\n", MEBIBYTE),
        (b"a" * (MEBIBYTE - 1) + b"\xe9\n", MEBIBYTE - 1),
        # A character of three bytes whose third is wrong, in the next chunk.
        (b"a" * (MEBIBYTE - 2) + b"\xe2\x82" + b"a\n", MEBIBYTE - 2),
        # A whole character across the border, and the wrong byte after it.
        (b"a" * (MEBIBYTE - 1) + "é".encode() + b"b\xff\n", MEBIBYTE + 2),
        (b"a" * (2 * MEBIBYTE - 1) + "😀".encode() + b"\xff", 2 * MEBIBYTE + 3),
        (b"text\nends within \xe2\x82", 17),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_byte_that_is_not_utf8(write: Write, suffix: str, content: bytes, place: int) -> None:
    with pytest.raises(UnicodeDecodeError, match=rf"in position {place}"):
        content.decode()
    first = refusal(write(f"a{suffix}", content)).splitlines()[0]
    assert first == f"a{suffix}: not UTF-8 at byte {place}"


def test_utf8_across_the_chunk_border(write: Write) -> None:
    for text in ("é", "€", "😀"):
        for back in range(1, len(text.encode()) + 1):
            row = "a" * (MEBIBYTE - back - len('{"t": "')) + text
            assert read(write("a.jsonl", f'{{"t": "{row}"}}\n')) == [{"t": row}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1', "broken json: the line ends too soon"),
        ("{'a': 1}", "broken json: Expecting property name"),
        ('{"a": 1, "b": 2, "a": 3}', "broken json: a key stands twice"),
        ('{"a": [{"b": 1, "b": 2}]}', "broken json: a key stands twice"),
        ('["a"]', "a row is an object, not ['a']"),
    ],
)
def test_broken_line_has_its_number(write: Write, line: str, message: str) -> None:
    assert refusal(write("a.jsonl", f'{{"a": 1}}\n\n{line}\n')).startswith(f"a.jsonl:3: {message}")


def test_duplicate_columns(write: Write, tmp_path: Path) -> None:
    expected = "duplicate columns x, y among x, y, z, y, x"
    assert refusal(write("a.csv", "x,y,z,y,x\n1,2,3,4,5\n")) == f"a.csv: {expected}"
    table = pa.table([pa.array([1])] * 2, names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert refusal(str(tmp_path / "a.parquet")) == "a.parquet: duplicate columns x among x, x"


def test_ragged_csv(write: Write) -> None:
    message = refusal(write("a.csv", "x,y\n1,2\n1,2,3\n"))
    assert re.fullmatch(r"a\.csv: .*Expected 2 columns, got 3.*", message)


def test_broken_parquet(write: Write, tmp_path: Path) -> None:
    assert refusal(write("a.parquet", b"no parquet at all")).startswith("a.parquet: broken parquet")
    pq.write_table(pa.table({"x": list(range(999))}), tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    assert refusal(write("b.parquet", whole[:-9])).startswith("b.parquet: broken parquet: ")


def test_differing_columns(write: Write) -> None:
    paths = [write("a.csv", "x,y\n1,2\n"), write("b.csv", "x,z\n1,2\n")]
    expected = f"b.csv: columns ['x', 'z'] differ from ['x', 'y'] of {paths[0]}"
    with pytest.raises(HftuneError, match=re.escape(expected)):
        load_split(paths)


def test_differing_types_across_files(write: Write) -> None:
    paths = [write("a.csv", "y\n1\n"), write("b.jsonl", '{"y": 1}\n')]
    with pytest.raises(HftuneError, match=r"b\.jsonl and .*a\.csv: column types differ: 'y'"):
        load_split(paths)


@pytest.mark.parametrize(
    ("second", "kinds"),
    [
        ('"two"', "int in line 1, str in line 3"),
        ("true", "int in line 1, bool in line 3"),
        ("[2]", "int in line 1, list in line 3"),
        ('{"b": 2}', "int in line 1, dict in line 3"),
    ],
)
def test_mixed_types_name_their_lines(write: Write, second: str, kinds: str) -> None:
    path = write("a.jsonl", f'{{"a": 1}}\n\n{{"a": {second}}}\n{{"a": 4}}\n')
    assert refusal(path) == f"a.jsonl: column 'a' mixes types: {kinds}"


@pytest.mark.parametrize(
    "value", ["100000000000000000000", r'"half an emoji \ud83d"'], ids=["integer", "surrogate"]
)
def test_value_that_no_table_holds(write: Write, value: str) -> None:
    path = write("a.jsonl", f'{{"a": {value}}}\n')
    with pytest.raises(HftuneError, match=r"a\.jsonl: column 'a'"):
        load_split(path)


def test_unknown_suffix(write: Write) -> None:
    known = (
        ".csv, .tsv, .json, .jsonl, .parquet, .txt, .conll, .bio, .iob, and .gz of the text kinds"
    )
    for name in ("a.xlsx", "a.parquet.gz", "a.gz", "a.xlsx.gz"):
        expected = f"{name}: unknown kind of file; known: {known}"
        assert refusal(write(name, "x\n1\n")) == expected


def test_unknown_demo() -> None:
    expected = "demo:docstring: unknown demo data; known: demo:docstrings"
    with pytest.raises(HftuneError, match=f"^{expected}$"):
        load_split("demo:docstring")


@pytest.mark.parametrize("other", ["demo:docstrings", "no/such.txt", "some/hub-id"])
@pytest.mark.parametrize("with_file", [True, False])
def test_list_holds_files_alone(write: Write, other: str, with_file: bool) -> None:
    paths = [write("a.csv", "x\n1\n"), other] if with_file else [other]
    with pytest.raises(HftuneError, match=re.escape(other)):
        load_split(paths)


def test_unknown_split(saved_parts: str) -> None:
    splits = "splits: train, validation, test, extra"
    with pytest.raises(HftuneError, match=rf"data\.split: .*parts has no 'trian'; {splits}"):
        load_splits(saved_parts, split="trian")
    with pytest.raises(HftuneError, match=rf"split: .*parts has no 'dev'; {splits}"):
        load_split(saved_parts, "dev")


def test_neither_file_nor_folder_nor_on_the_hub() -> None:
    with pytest.raises(
        HftuneError, match=r"^none/such: no file, no folder, and not readable from the Hub: "
    ):
        load_split("none/such")
