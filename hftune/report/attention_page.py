# SPDX-License-Identifier: Apache-2.0
"""Make the HTML page that shows attention; it is one file and loads nothing from other hosts."""

import base64
import html
import json
import re
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The page stores square roots of weights as whole numbers up to this one. The error is less than
#: 0.025 % of a token's attention, and less than 0.0025 % for weights below 1 %.
LEVELS = 4095


def attention_page(record: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        record: The result of :func:`hftune.explain`: ``model``, ``task``, ``text``, ``prediction``,
            ``maps`` and the rest of ``attention.json``, with ``weights`` as arrays.
    """
    maps = [{**one, "weights": pack_weights(one["weights"])} for one in record["maps"]]
    data = json.dumps({**record, "maps": maps, "levels": LEVELS}, ensure_ascii=False)
    folder = files("hftune.report").joinpath("templates")
    parts = {
        "title": html.escape(f"Attention: {record['text']}"[:80]),
        "style": folder.joinpath("attention.css").read_text("utf-8"),
        "data": data.replace("<", "\\u003c"),  # no text can end the script element
        "script": folder.joinpath("attention.js").read_text("utf-8"),
    }
    page = folder.joinpath("attention.html").read_text("utf-8")
    # One pass replaces all parts, because a part may itself contain {{script}}.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)


def pack_weights(weights: NDArray[np.float32]) -> str:
    """Return weights as text: square roots in 12 bits, low bytes before high bytes, deflated.

    Example:
        >>> weights = np.array([0.25, 0.75], dtype=np.float32)
        >>> unpack_weights(pack_weights(weights), (2,)).round(3).tolist()
        [0.25, 0.75]
    """
    levels = np.rint(np.sqrt(weights) * LEVELS).astype("<u2")
    planes = (levels & 0xFF).astype(np.uint8).tobytes() + (levels >> 8).astype(np.uint8).tobytes()
    return base64.b64encode(zlib.compress(planes, 6)).decode("ascii")


def unpack_weights(text: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the weights that the page shows for a text of :func:`pack_weights`."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    low, high = planes.reshape(2, -1).astype(np.uint16)
    return (((high << 8) | low) / LEVELS).reshape(shape) ** 2
