# SPDX-License-Identifier: Apache-2.0
"""Numbers of optimizer steps, as Transformers writes them."""

import math


def resolve_steps(given: float, whole: int) -> int:
    """Return a number of steps; one below 1 is a share of the whole, rounded up.

    Example:
        >>> resolve_steps(30, 1000), resolve_steps(0.05, 1000), resolve_steps(0, 1000)
        (30, 50, 0)
    """
    return math.ceil(given * whole) if 0 < given < 1 else int(given)
