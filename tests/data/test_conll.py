# SPDX-License-Identifier: Apache-2.0
"""CoNLL files, with what stands in real ones, and broken ones."""

from pathlib import Path

import pytest

from hftune import HftuneError
from hftune.data.load_rows import load_split


def read(tmp_path: Path, text: str, name: str = "rows.conll") -> dict[str, list[list[str]]]:
    (tmp_path / name).write_bytes(text.encode())
    return load_split(str(tmp_path / name)).to_dict()


@pytest.mark.parametrize("suffix", ["conll", "bio", "iob"])
def test_words_and_tags(tmp_path: Path, suffix: str) -> None:
    rows = read(tmp_path, "New B-a\nYork I-a\n\n\nhi O\n", f"rows.{suffix}")
    assert rows == {"tokens": [["New", "York"], ["hi"]], "tags": [["B-a", "I-a"], ["O"]]}


def test_four_columns_and_document_starts(tmp_path: Path) -> None:
    rows = read(tmp_path, "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\r\nsays VBZ B-VP O\r\n")
    assert rows == {
        "tokens": [["EU", "says"]],
        "column_2": [["NNP", "VBZ"]],
        "column_3": [["B-NP", "B-VP"]],
        "tags": [["B-ORG", "O"]],
    }


def test_tabs_keep_spaces_and_strange_separators(tmp_path: Path) -> None:
    rows = read(tmp_path, "New York\tB-a\na\u2028b\tO\n#\tO\n")
    assert rows == {"tokens": [["New York", "a\u2028b", "#"]], "tags": [["B-a", "O", "O"]]}


def test_comments_are_lines_that_cannot_be_words(tmp_path: Path) -> None:
    text = "# id 7 domain=en\n# text = a\nfirst O\n# O\n#tag O\n\n# O\nlast O\n"
    assert read(tmp_path, text)["tokens"] == [["first", "#", "#tag"], ["#", "last"]]


def test_a_comment_between_words_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HftuneError, match=r"rows.conll:2: 3 columns, where the other lines have 2"):
        read(tmp_path, "a O\n# no word\nb O\n")


def test_words_alone_have_no_tags(tmp_path: Path) -> None:
    assert read(tmp_path, "a\nb\n\nc") == {"tokens": [["a", "b"], ["c"]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\nc O\n", r"rows\.conll:2: 1 columns, where the other lines have 2"),
        ("a\tO\n \tO\n", r"rows\.conll:2: a tag without a word"),
        ("# a comment of many words\n", "no rows"),
        ("\n\n", "no rows"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        read(tmp_path, text)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.conll").write_bytes("a O\nä O\n".encode("latin1"))
    with pytest.raises(HftuneError, match="not UTF-8 at byte 4"):
        load_split(str(tmp_path / "latin.conll"))
