# SPDX-License-Identifier: Apache-2.0
"""Blocks put end to end are the documents put end to end: no token is lost, doubled or moved."""

from itertools import chain, pairwise

import numpy as np
import pytest

from hftune.data.blocks import joined_blocks, separate_blocks

GENERATOR = np.random.default_rng(0)
DOCUMENTS = [GENERATOR.integers(0, 99, size).tolist() for size in (3, 0, 1, 25, 8, 7, 4)]


@pytest.mark.parametrize("size", [1, 2, 7, 8, 48, 100])
def test_joined_blocks_are_the_documents_in_whole_blocks(size: int) -> None:
    blocks = list(joined_blocks(DOCUMENTS, size))
    assert list(chain(*blocks)) == list(chain(*DOCUMENTS))
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size


@pytest.mark.parametrize("size", [1, 4, 100])
def test_separate_blocks_hold_one_document(size: int) -> None:
    for document in DOCUMENTS:
        blocks = list(separate_blocks([document], size))
        assert list(chain(*blocks)) == document
        assert all(len(first) == size for first, _ in pairwise(blocks))
    together = list(separate_blocks(DOCUMENTS, size))
    assert together == [block for one in DOCUMENTS for block in separate_blocks([one], size)]


def test_nothing_gives_no_block() -> None:
    assert list(joined_blocks([], 4)) == list(separate_blocks([[]], 4)) == []
