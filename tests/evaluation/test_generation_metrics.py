# SPDX-License-Identifier: Apache-2.0
"""Metrics of texts against values computed by hand from their definitions."""

import pytest

from hftune.evaluation.generation_metrics import generation_metrics


def test_equal_texts_are_perfect() -> None:
    texts = ["the cat sat on the mat", "a dog ran over the hill"]
    figures = generation_metrics([f" {text} " for text in texts], texts)
    assert figures.pop("bleu") == pytest.approx(100)
    assert figures.pop("chrf") == pytest.approx(100)
    assert figures == dict.fromkeys(figures, 1.0)


def test_bleu_by_hand() -> None:
    """n-gram precisions 6/7, 5/6, 4/5 and 3/4; their product is 3/7; nothing is too short."""
    figures = generation_metrics(["the cat sat on the mat today"], ["the cat sat on the mat"])
    assert figures["bleu"] == pytest.approx(100 * (3 / 7) ** 0.25)
    assert figures["exact_match"] == 0
    assert figures["length_ratio"] == pytest.approx(28 / 22)


def test_bleu_is_of_the_corpus_and_not_a_mean() -> None:
    """5 + 4 words match wholly, a third row of one word not: 9/10, 7/7, 5/5, 3/3 n-grams."""
    said = ["a b c d e", "f g h i", "x"]
    figures = generation_metrics(said, ["a b c d e", "f g h i", "y"])
    assert figures["bleu"] == pytest.approx(100 * 0.9**0.25)
    assert figures["exact_match"] == pytest.approx(2 / 3)


def test_chrf_by_hand() -> None:
    """Of abc and abd, 2/3 letters, 1/2 pairs and 0/1 triples match, both ways."""
    assert generation_metrics(["abc"], ["abd"])["chrf"] == pytest.approx(100 * 7 / 18)


def test_rouge_by_hand() -> None:
    """One word of two and of three in common, F 2/5; no pair; the second row is whole."""
    figures = generation_metrics(["the cat", "one two"], ["the dog sat", "one two"])
    assert figures["rouge1"] == figures["rougeL"] == pytest.approx((0.4 + 1) / 2)
    assert figures["rouge2"] == pytest.approx(0.5)


def test_nothing_written_is_no_error() -> None:
    figures = generation_metrics(["", ""], ["one two", ""])
    assert figures["bleu"] == figures["rouge1"] == figures["length_ratio"] == 0
    assert figures["exact_match"] == 0.5
