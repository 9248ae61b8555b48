# SPDX-License-Identifier: Apache-2.0
"""Documents cut into blocks of tokens, for training on plain text. No token is thrown away."""

from collections.abc import Iterable, Iterator, Sequence


def joined_blocks(documents: Iterable[Sequence[int]], block_size: int) -> Iterator[list[int]]:
    """Yield blocks of exactly ``block_size`` tokens out of the documents put end to end.

    What is left at the end is a shorter last block.

    Args:
        documents: Token ids, each document with its own end token.
        block_size: Tokens of a block, at least 1.
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
    """Yield blocks of at most ``block_size`` tokens, none of which holds two documents.

    Args:
        documents: Token ids of each document.
        block_size: Tokens that a block may have, at least 1.
    """
    for document in documents:
        for start in range(0, len(document), block_size):
            yield list(document[start : start + block_size])
