# SPDX-License-Identifier: Apache-2.0
"""Logits stand beside the labels they predict."""

import torch

from hftune.losses.contract import aligned, targets
from hftune.tasks.contract import blank_row


def test_classifier_drops_blank_rows() -> None:
    logits, labels = torch.arange(6.0).view(3, 2), torch.tensor([1, -100, 0])
    assert targets(labels) is labels
    kept, kept_labels = aligned(logits, labels)
    assert kept.tolist() == [[0.0, 1.0], [4.0, 5.0]]
    assert kept_labels.tolist() == [1, 0]


def test_language_model_predicts_the_next_token() -> None:
    labels = torch.tensor([[9, -100, 2, 3], [-100, 1, -100, -100]])
    # The logit says at which row and position it stands: two virtual tokens come first.
    places = torch.tensor([[10 * b + t for t in range(-2, 4)] for b in range(2)])
    logits, kept = aligned(places[..., None].float(), labels)
    assert logits[:, 0].tolist() == [1.0, 2.0, 10.0]
    assert kept.tolist() == [2, 3, 1]
    assert targets(labels).tolist() == [[-100, 2, 3], [1, -100, -100]]


def test_blank_rows_count_nothing() -> None:
    row = {"input_ids": [5, 6], "labels": [5, 6]}
    assert blank_row(row) == {"input_ids": [5, 6], "labels": [-100, -100]}
    assert blank_row({"input_ids": [5], "labels": 2}) == {"input_ids": [5], "labels": -100}
    assert row["labels"] == [5, 6]
