# SPDX-License-Identifier: Apache-2.0
"""Loss is an average over tokens, not over rows; perplexity is its exponential."""

import math

import numpy as np
import pytest

from hftune.evaluation.language_modelling import language_modelling_metrics


def test_by_hand() -> None:
    # One token of probability 1/8 and three of probability 1/2: the mean is (3 + 3) / 4 bits.
    losses = np.array([math.log(8), 3 * math.log(2)], dtype=np.float32)
    found = language_modelling_metrics(losses, np.array([1, 3]))
    assert found["loss"] == pytest.approx(1.5 * math.log(2))
    assert found["perplexity"] == pytest.approx(2**1.5)
    assert found["tokens"] == 4
    assert isinstance(found["tokens"], int)


def test_uniform_guess_is_as_perplexed_as_the_vocabulary_is_large() -> None:
    tokens = np.array([1, 7, 30])
    found = language_modelling_metrics(tokens * math.log(50), tokens)
    assert found["perplexity"] == pytest.approx(50)


def test_many_tokens_are_added_without_rounding() -> None:
    losses = np.ones(2**24 + 2, dtype=np.float32)
    found = language_modelling_metrics(losses, np.ones(2**24 + 2, dtype=np.int64))
    assert found["loss"] == 1
    assert found["tokens"] == 2**24 + 2


def test_no_tokens() -> None:
    found = language_modelling_metrics(np.zeros(2), np.zeros(2, dtype=int))
    assert found["tokens"] == 0
    assert math.isnan(found["loss"])
    assert math.isnan(found["perplexity"])


def test_loss_beyond_floats() -> None:
    found = language_modelling_metrics(np.array([1e6]), np.array([1]))
    assert found["loss"] == 1e6
    assert math.isfinite(found["perplexity"])
