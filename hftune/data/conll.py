# SPDX-License-Identifier: Apache-2.0
"""Read CoNLL files: one word a line with its columns, a blank line between sentences.

The first column is the word and the last one its tag. Tabs separate the columns if the line of the
first word has one; otherwise any white space does.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa

from hftune.core.errors import HftuneError

#: Suffixes of CoNLL files.
CONLL = (".conll", ".bio", ".iob")
DOCUMENT_START = "-DOCSTART-"
Line = tuple[int, list[str]]


def read_conll(file: Path) -> pa.Table:
    r"""Return a table with the lists ``tokens`` and ``tags``, one row for each sentence.

    Columns between the two are kept as ``column_2``, ``column_3`` and so on. A file that has only
    words has no ``tags``. Lines that begin with ``-DOCSTART-`` are skipped, and so are comments. A
    comment stands at the start of a sentence and begins with ``# ``; it has another number of
    columns than the words, or ``=`` as its third piece, as in ``# text = ...``.

    Raises:
        HftuneError: The file is not UTF-8, or a line has another number of columns.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "rows.conll")
        ...     _ = file.write_text("Ada B-PER\nsings O\n\nYes O\n")
        ...     read_conll(file).to_pydict()
        {'tokens': [['Ada', 'sings'], ['Yes']], 'tags': [['B-PER', 'O'], ['O']]}
    """
    sentences = _sentences(_lines(file))
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


def _lines(file: Path) -> list[str]:
    try:
        # Not splitlines: a word may contain a line separator such as U+2028.
        return file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise HftuneError(
            f"{file}: not UTF-8 at byte {error.start}",
            hint="save it as UTF-8, for one with: iconv -f latin1 -t utf-8",
        ) from None


def _sentences(lines: list[str]) -> list[list[Line]]:
    """Return the numbered lines of each sentence, split into columns."""
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
    """Return the number of columns of most lines; possible comments do not count."""
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
