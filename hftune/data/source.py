# SPDX-License-Identifier: Apache-2.0
"""A file to read: its kind, its bytes, whether they are text."""

import codecs
import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hftune.core.errors import HftuneError


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        file: Where it is, and its name in messages.
        sample_by: What a row of a txt file is.
    """

    file: Path
    sample_by: str = "line"

    @property
    def kind(self) -> str:
        """The suffix that says how to read it, without a ``.gz``."""
        return kind_of(self.file)

    def open(self) -> BinaryIO:
        """Open its bytes, decompressed."""
        if self.file.suffix == ".gz":
            return gzip.open(self.file, "rb")  # type: ignore[return-value]
        return self.file.open("rb")

    def text(self) -> io.TextIOWrapper:
        """Open it as text, without a byte order mark."""
        return io.TextIOWrapper(self.open(), encoding="utf-8-sig")


def kind_of(file: Path) -> str:
    """Return the suffix that says how to read a file, without a ``.gz``."""
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix


def check_utf8(source: Source) -> None:
    """Raise :class:`HftuneError` at the first byte of a file that is not UTF-8."""
    file = source.file
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with source.open() as stream:
        while chunk := stream.read(1 << 20):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise HftuneError(
                    f"{file}: not UTF-8 at byte {position - pending + error.start}",
                    hint="save it as UTF-8, for one with: iconv -f latin1 -t utf-8",
                ) from None
            position += len(chunk)
        if decoder.getstate()[0]:
            raise HftuneError(f"{file}: not UTF-8 at byte {position - len(decoder.getstate()[0])}")
