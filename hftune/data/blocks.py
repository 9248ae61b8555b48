# SPDX-License-Identifier: Apache-2.0
"""Cut documents into blocks of tokens for training on plain text. No token is dropped."""

from collections.abc import Iterable, Iterator, Sequence


def joined_blocks(documents: Iterable[Sequence[int]], block_size: int) -> Iterator[list[int]]:
    """Yield blocks of ``block_size`` tokens from the concatenated documents.

    The last block has the remaining tokens and may be shorter.

    Args:
        documents: Token ids, each document with its own end token.
        block_size: Tokens of a block, at least 1.

    Example:
        >>> list(joined_blocks([[1, 2, 3], [4, 5]], block_size=2))
        [[1, 2], [3, 4], [5]]
    """
    rest: list[int] = []
    for document in documents:
        rest.extend(document)
        whole = len(rest) - len(rest) % block_size
        yield from separate_blocks([rest[:whole]], block_size)
        del rest[:whole]
    if rest:
        yield rest


def separate_blocks(documents: Iterable[Sequence[int]], block_size: int) -> Iterator[list[int]]:
    """Yield blocks of at most ``block_size`` tokens, each from one document.

    Args:
        documents: Token ids of each document.
        block_size: Largest number of tokens of a block, at least 1.

    Example:
        >>> list(separate_blocks([[1, 2, 3], [4, 5]], block_size=2))
        [[1, 2], [3], [4, 5]]
    """
    for document in documents:
        for start in range(0, len(document), block_size):
            yield list(document[start : start + block_size])
