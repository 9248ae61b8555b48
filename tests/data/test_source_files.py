# SPDX-License-Identifier: Apache-2.0
"""Every kind of file gives the rows that it holds, plain, compressed, in folders and cached."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hftune.core.errors import HftuneError
from hftune.data import arrow, readers
from hftune.data import source_files as files
from hftune.data.arrow import mapped, write_arrow
from hftune.data.load_rows import load_split, load_splits
from hftune.data.source_files import read_files

ROWS = [{"text": "NA", "label": "007"}, {"text": "grün, 😀", "label": "2024-01-01"}]
CONTENTS = {
    ".csv": 'text,label\nNA,007\n"grün, 😀",2024-01-01\n',
    ".tsv": "text\tlabel\nNA\t007\ngrün, 😀\t2024-01-01\n",
    ".json": json.dumps(ROWS, indent=1),
    ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HFTUNE_CACHE", str(folder))
    return folder


def write(path: Path, content: str | bytes) -> str:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def refusal(path: Any, **options: Any) -> str:
    with pytest.raises(HftuneError, match=r".") as caught:
        load_splits(path, **options)
    folder = Path(path[-1] if isinstance(path, list) else path).parent
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("large", [False, True])
def test_every_kind_gives_the_same_rows(
    tmp_path: Path, suffix: str, compressed: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(files, "CACHED_BYTES", 0)
    path = write(tmp_path / f"a{suffix}{compressed}", CONTENTS[suffix])
    assert load_split(path).to_list() == ROWS


def test_json_object_of_columns(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "label": [1, 2]}
    rows = load_split(write(tmp_path / "a.json", json.dumps(columns)))
    assert rows.to_dict() == columns


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "a.json: no rows"),
        ('[{"a": 1}', "a.json: broken json: Expecting ',' delimiter: line 1 column 10"),
        ('{"a": 1}\n{"a": 2}', "a.json: broken json: Extra data: line 2 column 1"),
        ('{"data": [1], "n": 1}', "a.json: an array of objects, or an object of columns"),
        ('{"a": [1], "b": [1, 2]}', "a.json: an array of objects, or an object of columns"),
        ("{}", "a.json: an array of objects, or an object of columns"),
        ("3", "a.json: an array of objects is needed, not 3"),
        ('[{"a": 1}, 2]', "a.json: item 2 is no object but 2"),
        ('[{"a": 1, "a": 2}]', "a.json: broken json: a key stands twice"),
        ('[{"a": 1}, {"a": "x"}]', "a.json: column 'a' mixes types: int in item 1, str in item 2"),
        (
            '[{"a": ["x"]}, {"a": [1]}]',
            "a.json: column 'a' mixes types: str in a list in item 1, int in a list in item 2",
        ),
    ],
)
def test_broken_json(tmp_path: Path, content: str, message: str) -> None:
    assert refusal(write(tmp_path / "a.json", content)).startswith(message)


@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [
        (None, ["one", " two", "three", "four"]),
        ("line", ["one", " two", "three", "four"]),
        ("paragraph", ["one\n two", "three\nfour"]),
        ("document", ["one\n two\n\n\nthree\nfour\n"]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_txt(tmp_path: Path, sample_by: str | None, texts: list[str], newline: str) -> None:
    content = "\ufeffone\n two\n\n\nthree\nfour\n".replace("\n", newline)
    path = write(tmp_path / "a.txt", content)
    assert load_splits(path, sample_by=sample_by)[0]["text"][:] == texts


def test_sample_by_needs_txt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\nx\n")
    assert refusal(path, sample_by="line") == "data.sample_by: a.csv is no txt file"
    assert "no txt file" in refusal("demo:docstrings", sample_by="line")


def test_ragged_tsv_names_the_row(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.tsv", "x\ty\n1\t2\n1\t2\t3\n"))
    assert message.startswith("a.tsv: ")
    assert "Row #3" in message
    assert "Expected 2 columns, got 3" in message


@pytest.mark.parametrize("suffix", [*CONTENTS, ".txt"])
def test_not_utf8_inside_gzip(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}.gz", b"text\ncaf\xe9 au lait\n")
    assert refusal(path).splitlines()[0] == f"a{suffix}.gz: not UTF-8 at byte 8"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_damaged_gzip(tmp_path: Path, suffix: str) -> None:
    whole = gzip.compress(CONTENTS[suffix].encode() * 100)
    for index, raw in enumerate((whole[:-12], whole[:30] + b"\0\0" + whole[32:], b"no gzip")):
        path = tmp_path / f"{index}{suffix}.gz"
        path.write_bytes(raw)
        assert refusal(str(path)).startswith(f"{path.name}: damaged gzip: ")


# Folders


def test_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"text": name}))
    write(tmp_path / "c.jsonl.gz", json.dumps({"text": "c"}))
    write(tmp_path / "README.md", "# Card")
    write(tmp_path / ".hidden", "")
    assert load_split(str(tmp_path))["text"][:] == ["a", "b", "c"]


def test_folder_of_splits(tmp_path: Path) -> None:
    names = ["test", "train-00000-of-00002", "train-00001-of-00002", "validation"]
    for name in names:
        write(tmp_path / f"{name}.csv", f"text\n{name}\n")
    train, validation = load_splits(str(tmp_path))
    assert train["text"][:] == names[1:3]
    assert validation is not None
    assert validation["text"][:] == ["validation"]
    assert load_split(str(tmp_path))["text"][:] == ["test"]
    assert load_splits(str(tmp_path), "test", split="train[1:]")[0]["text"][:] == names[2:3]
    write(tmp_path / "more.csv", "text\nx\n")
    assert "beside others: more.csv" in refusal(str(tmp_path))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    empty, mixed, strange = (tmp_path / name for name in ("empty", "mixed", "strange"))
    for folder in (empty / "deeper", mixed, strange):
        folder.mkdir(parents=True)
    assert refusal(str(empty)) == (
        "empty: no file with rows in the folder\nfolders in it: deeper; name one, or a glob"
    )
    write(mixed / "a.csv", "x\n1\n")
    write(mixed / "b.jsonl", '{"x": "1"}')
    assert "holds files of one kind, not .csv and .jsonl" in refusal(str(mixed))
    write(strange / "a.csv", "x\n1\n")
    write(strange / "b.xlsx", "x")
    assert "not b.xlsx: unknown kind of file" in refusal(str(strange))


def test_files_whose_schemas_disagree(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", '{"x": 1, "y": "s", "z": null}'),
        write(tmp_path / "b.jsonl", '{"x": 1.5, "y": "t", "z": [1]}'),
        write(tmp_path / "c.jsonl", '{"x": 2, "y": 3, "z": "no"}'),
    ]
    assert read_files([Path(p) for p in paths[:2]]).to_dict() == {
        "x": [1.0, 1.5], "y": ["s", "t"], "z": [None, [1]]
    }  # fmt: skip
    assert refusal(paths[::2]) == (
        f"c.jsonl and {tmp_path}/a.jsonl: column types differ: 'y' is int64 here and string there"
    ).replace(f"{tmp_path}/", "")


# Slices, names, revisions


@pytest.mark.parametrize(
    "spec", ["train[:10%]", "train[25:40]", "train[-7:]", "train[90%:]", "train[:3]+train[50:55]"]
)
def test_slices_are_those_of_datasets(tmp_path: Path, spec: str) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "".join(f"row {i}\n" for i in range(57)))
    expected = datasets.load_dataset("csv", data_files=path, split=spec, cache_dir=tmp_path / "hf")
    assert load_splits(path, split=spec)[0]["text"][:] == expected["text"][:]
    rows, held_out = load_splits(path, spec, split="train[:5]")
    assert held_out is not None
    assert held_out["text"][:] == expected["text"][:]
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("train[5:20]", "data.split: train[5:20]: 20 is beyond the 10 rows"),
        ("train[:120%]", "data.split: train[:120%]: 120% is beyond the 10 rows"),
        ("train[5:2]", "data.split: train[5:2] of a.csv holds no row"),
        ("dev[:2]", "data.split: a.csv has no 'dev'; splits: train"),
        ("train", "data.split: a.csv has no splits"),
    ],
)
def test_slices_that_are_refused(tmp_path: Path, spec: str, message: str) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "x\n" * 10)
    assert refusal(path, split=spec).startswith(message)


@pytest.mark.parametrize("key", ["name", "revision"])
def test_name_and_revision_need_the_hub(tmp_path: Path, key: str) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(saved)
    file = write(tmp_path / "a.csv", "text\nx\n")
    for path, kind in (
        (str(saved), "a folder"),
        (file, "a file"),
        ([file], "a list of files"),
        ("demo:docstrings", "demo data"),
    ):
        with pytest.raises(HftuneError, match=rf"data\.{key}: .* is {kind}; only Hub data sets"):
            load_splits(path, **{key: "x"})


# The cache


def test_cached_rows_follow_the_content(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CACHED_BYTES", 0)
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n')
    assert load_split(path)["text"][:] == ["one"]
    assert len(list((cache / "rows").iterdir())) == 1
    monkeypatch.setattr(readers, "check_utf8", lambda source: pytest.fail("read twice"))
    assert load_split(path)["text"][:] == ["one"]
    monkeypatch.undo()
    monkeypatch.setenv("HFTUNE_CACHE", str(cache))
    monkeypatch.setattr(files, "CACHED_BYTES", 0)
    write(tmp_path / "a.jsonl", '{"text": "two"}\n')
    assert load_split(path)["text"][:] == ["two"]


def test_broken_file_leaves_nothing_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CACHED_BYTES", 0)
    monkeypatch.setattr(readers, "BATCH", 2)
    path = write(tmp_path / "a.jsonl", '{"x": 1}\n{"x": 2}\n{"x": 3}\n{"x": "four"}\n{"x": 5}\n')
    assert "mixes types: int in line 3, str in line 4" in refusal(path)
    path = write(tmp_path / "b.jsonl", '{"x": 1}\n{"x": 2}\n{"x": "3"}\n{"x": "four"}\n')
    assert "mixes types: int in line 1, str in line 3" in refusal(path)
    assert list((cache / "rows").iterdir()) == []


def test_schema_that_grows_from_batch_to_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [
        {"x": None, "m": []},
        {"x": 1, "m": [{"role": "a"}]},
        {"x": 2.5, "m": [{"role": "a", "name": "n"}], "late": "2024-01-01"},
        {"x": 3, "m": None},
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    whole = load_split(path).to_list()
    for size in (1, 2, 3):
        monkeypatch.setattr(files, "CACHED_BYTES", 0)
        monkeypatch.setattr(readers, "BATCH", size)
        monkeypatch.setattr(readers, "READERS_VERSION", 1000 + size)
        monkeypatch.setattr(files, "READERS_VERSION", 1000 + size)
        assert load_split(path).to_list() == whole
    assert whole[2]["late"] == "2024-01-01"
    assert [row["x"] for row in whole] == [None, 1.0, 2.5, 3.0]


def test_arrow_file_of_many_tables(tmp_path: Path) -> None:
    tables = [pa.table({"x": [i, i + 1]}) for i in range(50)]
    assert write_arrow(tables, tmp_path / "a.arrow") == 100
    assert mapped(tmp_path / "a.arrow").equals(arrow.joined(tables))
    assert [item.name for item in tmp_path.iterdir()] == ["a.arrow"]


def test_parquet_keeps_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CACHED_BYTES", 0)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    given = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    given.to_parquet(tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").metadata
    assert load_split(str(tmp_path / "a.parquet")).features == features


@pytest.mark.parametrize("read", [load_split, lambda path: load_splits(path)[0]])
def test_large_csv_with_long_quoted_cells(
    tmp_path: Path, read: Callable[[str], datasets.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CSV_BLOCK", 4096)
    texts = [f'"{index}\n' + "x" * (index * 37 % 3000) for index in range(300)]
    cells = "".join('"' + text.replace('"', '""') + '"\n' for text in texts)
    assert read(write(tmp_path / "a.csv", "text\n" + cells))["text"][:] == texts
