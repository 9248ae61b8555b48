# SPDX-License-Identifier: Apache-2.0
"""L-BFGS where nobody hands over a closure: the Trainer calls ``step()`` alone.

Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import LBFGS


class BatchLBFGS(LBFGS):
    """L-BFGS that knows how to compute the loss of the batch again.

    Attributes:
        closure: Clears the gradients, computes loss and gradients anew, and returns the loss.
    """

    closure: Callable[[], Tensor] | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take up to ``max_iter`` quasi-Newton steps on the batch."""
        again = closure or self.closure
        if again is None:
            raise RuntimeError("lbfgs computes the loss several times a step and was not told how")
        return super().step(again)  # type: ignore[no-untyped-call]
