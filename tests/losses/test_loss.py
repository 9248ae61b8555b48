# SPDX-License-Identifier: Apache-2.0
"""Logits stand beside the labels they predict."""

import pytest
import torch

from hftune.losses import loss as contract
from hftune.losses.loss import aligned, counted, targets
from hftune.tasks.task import blank_row


def test_classifier_drops_blank_rows() -> None:
    logits, labels = torch.arange(6.0).view(3, 2), torch.tensor([1, -100, 0])
    assert targets(labels, causal=False) is labels
    kept, kept_labels = aligned(logits, labels, causal=False)
    assert kept.tolist() == [[0.0, 1.0], [4.0, 5.0]]
    assert kept_labels.tolist() == [1, 0]


def test_language_model_predicts_the_next_token() -> None:
    labels = torch.tensor([[9, -100, 2, 3], [-100, 1, -100, -100]])
    # The logit says at which row and position it stands: two virtual tokens come first.
    places = torch.tensor([[10 * b + t for t in range(-2, 4)] for b in range(2)])
    logits, kept = aligned(places[..., None].float(), labels, causal=True)
    assert logits[:, 0].tolist() == [1.0, 2.0, 10.0]
    assert kept.tolist() == [2, 3, 1]
    assert targets(labels, causal=True).tolist() == [[-100, 2, 3], [1, -100, -100]]


def test_token_labels_stand_at_their_own_place() -> None:
    labels = torch.tensor([[9, -100, 2], [-100, 1, -100]])
    places = torch.tensor([[10 * b + t for t in range(-2, 3)] for b in range(2)])
    logits, kept = aligned(places[..., None].float(), labels, causal=False)
    assert logits[:, 0].tolist() == [0.0, 2.0, 11.0]
    assert kept.tolist() == [9, 2, 1]


def test_blank_numbers_count_nothing() -> None:
    several = blank_row({"labels": [0.0, 1.0]})["labels"]
    alone = blank_row({"labels": 2.5})["labels"]
    assert not counted(torch.tensor([*several, alone])).any()
    assert counted(torch.tensor([-100.0])).all()  # a number like others


def test_blank_rows_count_nothing() -> None:
    row = {"input_ids": [5, 6], "labels": [5, 6]}
    assert blank_row(row) == {"input_ids": [5, 6], "labels": [-100, -100]}
    assert blank_row({"input_ids": [5], "labels": 2}) == {"input_ids": [5], "labels": -100}
    assert row["labels"] == [5, 6]


def test_the_contract_is_imported_from_the_package() -> None:
    from hftune import losses

    for name in set(losses.__all__) - {"LOSSES"}:
        assert getattr(losses, name) is getattr(contract, name)
    with pytest.raises(AttributeError, match="no attribute 'sums'"):
        losses.sums  # noqa: B018
