# SPDX-License-Identifier: Apache-2.0
"""Draw all heads of all layers in one picture: rows are layers, columns are heads."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba_array
from matplotlib.figure import Figure
from numpy.typing import NDArray

RAMP = LinearSegmentedColormap.from_list(
    "attention", ["#ffffff", "#cde2fb", "#6da7ec", "#2a78d6", "#104281", "#0a2547"]
)
GUTTER = "#d9d8d3"
#: Pixels of a head, and of a head if there are many. Smaller maps are magnified by whole numbers,
#: larger ones are reduced.
PIXELS, PIXELS_OF_MANY, MANY = 128, 72, 150
MAX_ASPECT = 4  # largest ratio of the sides of a head, about
DPI = 150
LEFT, RIGHT, ABOVE, BELOW = 0.6, 0.24, 0.36, 1.0  # inches around the heads, whole pixels
LEAST_WIDTH = 3.6
LETTER = 0.08  # width of a letter of the title, in inches


def draw_attention_grid(
    weights: NDArray[np.float32], layers: Sequence[int], title: str, stem: Path
) -> list[Path]:
    """Draw every head and return the files, ``stem.svg`` and ``stem.png``.

    Dark cells are large weights. All heads share one scale, the square root of the weight, so that
    the many small weights stay visible. Rows attend, columns are attended to. The cells are one
    image inside the SVG, because a browser would need minutes for hundreds of heads as vectors.

    Args:
        weights: Shape ``(L, H, Q, K)``.
        layers: The L layers' numbers.
        title: A line above the picture.
        stem: Path of the files without suffix.
    """
    L, H = weights.shape[:2]
    top = float(weights.max())
    picture, height, width = _tiled(weights, top)
    # One pixel of the image is one pixel of the PNG.
    inches = picture.shape[1] / DPI, picture.shape[0] / DPI
    size = (max(inches[0], LEAST_WIDTH) + LEFT + RIGHT, inches[1] + ABOVE + BELOW)
    figure = Figure(figsize=size, facecolor="white")
    place = (LEFT / size[0], BELOW / size[1], inches[0] / size[0], inches[1] / size[1])
    axes = figure.add_axes(place)
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_xticks([(h + 0.5) * width for h in range(H)], [str(h) for h in range(H)])
    axes.set_yticks([(i + 0.5) * height for i in range(L)], [str(n) for n in layers])
    axes.set_xlabel("head", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    limit = int((size[0] - LEFT) / LETTER)
    shown = title if len(title) <= limit else f"{title[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
    axes.set_title(shown, fontsize=9, loc="left", parse_math=False)
    _draw_scale(figure, top, size)
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    figure.savefig(files[0], dpi=DPI)
    figure.savefig(files[1], dpi=DPI, pil_kwargs={"compress_level": 4})
    return files


def _draw_scale(figure: Figure, top: float, size: tuple[float, float]) -> None:
    place = (
        LEFT / size[0],
        0.42 / size[1],
        min(4.0, size[0] - LEFT - RIGHT) / size[0],
        0.1 / size[1],
    )
    scale = ScalarMappable(PowerNorm(0.5, vmin=0, vmax=top), RAMP)
    bar = figure.colorbar(scale, cax=figure.add_axes(place), orientation="horizontal")
    ticks = [share * top for share in (0, 0.05, 0.25, 0.5, 1)]
    bar.set_ticks(ticks, labels=[f"{tick:.0%}" for tick in ticks])
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)
    bar.set_label("share of attention; rows attend to columns", size=7, loc="left")


def _tiled(weights: NDArray[np.float32], top: float) -> tuple[NDArray[np.uint8], int, int]:
    """Return all heads side by side as RGB, and the height and width of a tile."""
    L, H = weights.shape[:2]
    pixels = PIXELS_OF_MANY if L * H > MANY else PIXELS
    colours = (255 * np.vstack([RAMP(np.arange(256)), to_rgba_array(GUTTER)])).astype(np.uint8)
    shades = np.rint(255 * np.sqrt(_resized(weights, pixels) / top)).astype(np.uint16)
    rows, columns = shades.shape[-2:]
    line = 2 if L * H > MANY else 4
    tiles = np.full((L, H, rows + line, columns + line), 256, dtype=np.uint16)
    tiles[:, :, :rows, :columns] = shades
    grid = tiles.transpose(0, 2, 1, 3).reshape(L * (rows + line), H * (columns + line))
    framed = np.pad(grid, ((line, 0), (line, 0)), constant_values=256)
    return colours[framed, :3], rows + line, columns + line


def _resized(weights: NDArray[np.float32], pixels: int) -> NDArray[np.float32]:
    """Return heads of about ``pixels``: magnified, or reduced to the largest weight of each block.

    A side that is much shorter than the other, such as an answer to a long text, is magnified more.
    """
    times = max(pixels // max(weights.shape[-2:]), 1)
    for axis in (-2, -1):
        size = weights.shape[axis]
        if size > pixels:
            starts = np.arange(0, size, math.ceil(size / pixels))
            weights = np.maximum.reduceat(weights, starts, axis=axis)
        else:
            weights = weights.repeat(max(times, pixels // MAX_ASPECT // size), axis=axis)
    return weights
