# SPDX-License-Identifier: Apache-2.0
"""The figures of what was pruned, its file and its picture."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hftune.report.sparsity import sparsity_figures, write_sparsity

pytestmark = pytest.mark.draws

PRUNED = {
    "bert.encoder.layer.0.attention.self.query.weight": {"weights": 16, "pruned": 4},
    "bert.encoder.layer.0.output.dense.weight": {"weights": 32, "pruned": 20},
    "bert.encoder.layer.1.output.dense.weight": {"weights": 32, "pruned": 0},
}


def test_figures() -> None:
    model = nn.Linear(5, 3)
    nn.init.ones_(model.bias)
    nn.init.ones_(model.weight)
    with torch.no_grad():
        model.weight[0, :4] = 0
    assert sparsity_figures(PRUNED, model) == {
        "sparsity": 24 / 80,
        "prunable_weights": 80,
        "pruned_weights": 24,
        "saved_parameters": 18,
        "saved_zeros": 4,
    }


def test_files(tmp_path: Path) -> None:
    files = write_sparsity(PRUNED, tmp_path)
    assert [file.name for file in files] == [
        "sparsity.json", "sparsity_by_layer.svg", "sparsity_by_layer.png",
    ]  # fmt: skip
    layers = json.loads(files[0].read_text())
    assert layers["bert.encoder.layer.0.output.dense.weight"] == {
        "weights": 32, "pruned": 20, "sparsity": 0.625,
    }  # fmt: skip
    assert [row["sparsity"] for row in layers.values()] == pytest.approx([0.25, 0.625, 0])
    assert all(file.stat().st_size > 0 for file in files)
    words = files[1].read_text()
    for word in ("bert.encoder.layer.1", "attention.self.query", "pruned share", "62%"):
        assert f"<!-- {word} -->" in words
