# SPDX-License-Identifier: Apache-2.0
"""The loss of each row, against torch's own of that row alone."""

import pytest
import torch
import torch.nn.functional as F

from hftune.losses.of_rows import row_losses
from hftune.tasks.problem_types.multi_label import MultiLabel
from hftune.tasks.problem_types.regression import Regression
from hftune.tasks.problem_types.single_label import SingleLabel

LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def test_one_label() -> None:
    labels = torch.tensor([0, 2, 1, 1, 0])
    expected = [F.cross_entropy(LOGITS[i : i + 1], labels[i : i + 1]) for i in range(5)]
    found = SingleLabel().row_losses(LOGITS, labels)
    torch.testing.assert_close(found, torch.stack(expected))


def test_several_labels_and_numbers() -> None:
    several = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])
    expected = [F.binary_cross_entropy_with_logits(LOGITS[i], several[i]) for i in range(5)]
    found = MultiLabel().row_losses(LOGITS, several)
    torch.testing.assert_close(found, torch.stack(expected))
    numbers = torch.tensor([0.5, -1, 2, 0, 3])
    found = Regression().row_losses(LOGITS[:, :1], numbers)
    torch.testing.assert_close(found, (LOGITS[:, 0] - numbers) ** 2)


@pytest.mark.parametrize("causal", [False, True])
def test_trained_tokens_alone_with_virtual_ones_before_them(causal: bool) -> None:
    """Row by row, the mean over the positions that have a label, behind two virtual tokens."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2 + 6, 4, generator=generator)
    labels = torch.randint(4, (3, 6), generator=generator)
    labels[0, :3] = labels[1, 4:] = labels[2, ::2] = -100
    found = row_losses(logits, labels, causal=causal)
    for row in range(3):
        given, meant = logits[row, 2:], labels[row]
        if causal:
            given, meant = given[:-1], meant[1:]
        torch.testing.assert_close(found[row], F.cross_entropy(given, meant))
