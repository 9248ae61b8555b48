# SPDX-License-Identifier: Apache-2.0
"""Curves are drawn where there are points, as pictures that open."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hftune.report.training_curves import draw_curves

pytestmark = pytest.mark.draws

LOG: list[dict[str, Any]] = [
    {"step": 5, "loss": 1.0, "learning_rate": 1e-3},
    {"step": 10, "loss": 0.5, "learning_rate": 5e-4},
    {"step": 10, "eval_loss": 0.7, "eval_accuracy": 0.8, "eval_mcc": -0.1},
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, once for each file."""
    saved: list[Figure] = []
    save = Figure.savefig

    def spy(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    (axes,) = figure.axes
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}


def test_files_open(tmp_path: Path) -> None:
    files = draw_curves(LOG, tmp_path / "plots")
    names = ["loss", "learning_rate", "metrics"]
    expected = [f"{name}.{suffix}" for name in names for suffix in ("svg", "png")]
    assert [file.name for file in files] == expected
    assert sorted((tmp_path / "plots").iterdir()) == sorted(files)
    for file in files:
        if file.suffix == ".svg":
            assert ET.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert imread(file).std() > 0, "not a blank page"


def test_points_are_those_of_the_log(tmp_path: Path, figures: list[Figure]) -> None:
    draw_curves(LOG, tmp_path)
    loss, rate, shares = figures[::2]
    assert lines(loss) == {"training": [(5, 1.0), (10, 0.5)], "validation": [(10, 0.7)]}
    assert lines(rate) == {"learning rate": [(5, 1e-3), (10, 5e-4)]}
    assert lines(shares) == {"accuracy": [(10, 0.8)], "mcc": [(10, -0.1)]}
    assert loss.axes[0].get_legend() is not None
    assert rate.axes[0].get_legend() is None


def test_nothing_is_drawn_without_points(tmp_path: Path) -> None:
    assert draw_curves([], tmp_path) == []
    assert draw_curves([{"step": 3, "train_runtime": 2.0}], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    files = draw_curves([{"step": 3, "loss": 2.0}], tmp_path)
    assert {file.stem for file in files} == {"loss"}


def test_a_loss_that_is_no_number_does_not_stop_the_report(tmp_path: Path) -> None:
    log = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}]
    assert len(draw_curves(log, tmp_path)) == 2
