# SPDX-License-Identifier: Apache-2.0
"""Every head is where its layer and number say, in the colour of its weights."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from hftune.report.attention_grid import ABOVE, DPI, LEFT, RAMP, draw_attention_grid

pytestmark = pytest.mark.draws


def random_weights(*shape: int) -> np.ndarray:
    scores = np.random.default_rng(0).normal(size=shape, scale=2)
    shares = np.exp(scores)
    return (shares / shares.sum(-1, keepdims=True)).astype(np.float32)


def colour(weight: float, top: float) -> np.ndarray:
    return np.array(RAMP(round(255 * (weight / top) ** 0.5))[:3])


def test_files_open(tmp_path: Path) -> None:
    files = draw_attention_grid(random_weights(2, 3, 5, 5), [0, 1], "a $text", tmp_path / "grid")
    assert [file.name for file in files] == ["grid.svg", "grid.png"]
    root = ET.parse(files[0]).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    images = list(root.iter("{http://www.w3.org/2000/svg}image"))
    assert 1 <= len(images) <= 2  # the heads, and perhaps the scale; never a shape for each cell
    assert len(list(root.iter())) < 1000


@pytest.mark.parametrize(("tokens", "pixels", "line"), [(32, 128, 4), (200, 100, 4)])
def test_a_pixel_has_the_colour_of_its_weight(
    tokens: int, pixels: int, line: int, tmp_path: Path
) -> None:
    """Small maps are magnified, large ones reduced to the largest weight of a block."""
    L, H = 2, 3
    weights = random_weights(L, H, tokens, tokens)
    _, png = draw_attention_grid(weights, [0, 1], "text", tmp_path / "grid")
    picture = imread(png)
    row, column = round(ABOVE * DPI) + line, round(LEFT * DPI) + line
    tile = pixels + line
    for layer, head, q, k in [(0, 0, 0, 1), (0, 2, 5, 31), (1, 0, 30, 2), (1, 1, 17, 9)]:
        if tokens <= pixels:
            times, weight = pixels // tokens, weights[layer, head, q, k]
        else:
            times, size = 1, tokens // pixels
            block = weights[layer, head, q * size : (q + 1) * size, k * size : (k + 1) * size]
            weight = block.max()
        y = row + layer * tile + q * times + times // 2
        x = column + head * tile + k * times + times // 2
        np.testing.assert_allclose(
            picture[y, x, :3], colour(weight, weights.max()), atol=0.02, err_msg=f"{layer} {head}"
        )


def test_a_map_need_not_be_square(tmp_path: Path) -> None:
    draw_attention_grid(random_weights(1, 2, 4, 9), [3], "t" * 300, tmp_path / "grid")
    assert imread(tmp_path / "grid.png").std() > 0


def test_a_short_answer_to_a_long_text_is_not_a_line(tmp_path: Path) -> None:
    """Each side is magnified, or reduced, by itself: two rows of 200 columns."""
    weights = random_weights(1, 1, 2, 200)
    _, png = draw_attention_grid(weights, [0], "text", tmp_path / "grid")
    picture = imread(png)
    row, column = round(ABOVE * DPI) + 4, round(LEFT * DPI) + 4
    for q, pair in [(0, 0), (0, 99), (1, 40)]:
        largest = weights[0, 0, q, 2 * pair : 2 * pair + 2].max()
        for pixel in (0, 15):  # 16 of 32 to each row
            found = picture[row + 16 * q + pixel, column + pair][:3]
            np.testing.assert_allclose(found, colour(largest, weights.max()), atol=0.02)


def test_many_heads_stay_small(tmp_path: Path) -> None:
    weights = random_weights(30, 9, 256, 256)
    files = draw_attention_grid(weights, list(range(30)), "text", tmp_path / "grid")
    assert all(file.stat().st_size < 4e6 for file in files)
