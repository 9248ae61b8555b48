# SPDX-License-Identifier: Apache-2.0
"""CoNLL files: one word a line, columns beside it, a blank line between sentences.

The first column is the word and the last one its tag. Columns are separated by tabs where the first
word's line has one, else by any white space.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa

from hftune.core.errors import HftuneError

#: Suffixes of such files.
CONLL = (".conll", ".bio", ".iob")
DOCUMENT_START = "-DOCSTART-"
Line = tuple[int, list[str]]


def read_conll(file: Path) -> pa.Table:
    """Return ``tokens`` and ``tags``, lists, a row a sentence.

    Columns between the two are kept as ``column_2``, ``column_3`` and so on. A file with the words
    alone has no ``tags``. Lines that begin with ``-DOCSTART-`` are skipped, and so are comments: a
    line at the start of a sentence that begins with ``# `` and either has another number of columns
    than the words have, or an ``=`` as its third piece, as in ``# text = ...``.

    Raises:
        HftuneError: The file is not UTF-8, or a line has another number of columns.
    """
    try:
        # Not splitlines: words may hold separators of lines such as U+2028.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise HftuneError(
            f"{file}: not UTF-8 at byte {error.start}",
            hint="save it as UTF-8, for one with: iconv -f latin1 -t utf-8",
        ) from None
    sentences = _sentences(lines)
    width = _width(sentences)
    rows = [_without_comments(sentence, width) for sentence in sentences]
    for number, columns in (line for row in rows for line in row):
        if len(columns) != width or not columns[0].strip():
            raise HftuneError(
                f"{file}:{number}: {len(columns)} columns, where the other lines have {width}"
                if len(columns) != width
                else f"{file}:{number}: a tag without a word"
            )
    names = ["tokens", *(f"column_{index}" for index in range(2, width)), "tags"][: max(width, 1)]
    rows = [row for row in rows if row]
    return pa.table(
        {
            name: pa.array([[columns[index] for _, columns in row] for row in rows],
                           pa.list_(pa.string()))
            for index, name in enumerate(names)
        }
    )  # fmt: skip


def _sentences(lines: list[str]) -> list[list[Line]]:
    """The lines of each sentence, with their numbers, split into columns."""
    words = (line for line in lines if line.strip() and not line.startswith(("#", DOCUMENT_START)))
    separator = "\t" if "\t" in next(words, "") else None
    sentences: list[list[Line]] = [[]]
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(DOCUMENT_START):
            sentences.append([])
        else:
            sentences[-1].append((number, line.rstrip("\r").split(separator)))
    return [sentence for sentence in sentences if sentence]


def _width(sentences: list[list[Line]]) -> int:
    """The number of columns that most lines have, those that may be comments apart."""
    lines = (columns for sentence in sentences for _, columns in sentence)
    widths = Counter(len(columns) for columns in lines if columns[0].split()[:1] != ["#"])
    return widths.most_common(1)[0][0] if widths else 0


def _without_comments(sentence: list[Line], width: int) -> list[Line]:
    for index, (_, columns) in enumerate(sentence):
        pieces = " ".join(columns).split()
        comment = pieces[0] == "#" and (len(columns) != width or pieces[2:3] == ["="])
        if not comment:
            return sentence[index:]
    return []
