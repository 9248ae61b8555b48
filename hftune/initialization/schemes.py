# SPDX-License-Identifier: Apache-2.0
"""Draw one tensor: by ``torch.nn.init``, and by schemes that it lacks.

LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998: a variance of ``1 / fan_in``, which keeps
that of the outputs where the activation normalizes itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hftune.core.registry import named
from hftune.initialization import SCHEMES
from hftune.initialization.section import Drawing


def draw(parameter: nn.Parameter, drawing: Drawing, holder: nn.Module) -> None:
    """Draw a parameter in place, from the global generator.

    Numbers are drawn in float32 and rounded to the parameter's type, so that they are the same for
    each type, and orthogonal in all of them.

    Args:
        parameter: Of two dimensions or more where the scheme needs them.
        drawing: Its name is that of a scheme with a target.
        holder: The module whose own the parameter is.
    """
    assert drawing.name is not None
    row = SCHEMES[drawing.name]
    assert row.target is not None
    shape = parameter.shape[::-1] if isinstance(holder, Conv1D) else parameter.shape
    drawn = torch.empty(shape, dtype=torch.float32, device=parameter.device)
    named(row.target)(drawn, **{**row.settings, **drawing.options})
    with torch.no_grad():  # GPT-2 keeps its weights as (in, out)
        parameter.copy_(drawn.T if isinstance(holder, Conv1D) and drawn.ndim == 2 else drawn)


def lecun_normal_(tensor: Tensor) -> Tensor:
    """Fill with a normal distribution of variance ``1 / fan_in``."""
    return nn.init.kaiming_normal_(tensor, nonlinearity="linear")


def lecun_uniform_(tensor: Tensor) -> Tensor:
    """Fill with a uniform distribution of variance ``1 / fan_in``."""
    return nn.init.kaiming_uniform_(tensor, nonlinearity="linear")


def trunc_normal_(
    tensor: Tensor,
    std: float,
    mean: float = 0.0,
    a: float | None = None,
    b: float | None = None,
) -> Tensor:
    """Fill with a normal distribution that is cut off at ``a`` and ``b``.

    torch's own bounds are -2 and 2, which cut off nothing of a small ``std``; here they are two
    standard deviations from the mean.
    """
    low = mean - 2 * std if a is None else a
    high = mean + 2 * std if b is None else b
    return nn.init.trunc_normal_(tensor, mean=mean, std=std, a=low, b=high)


def set_prior(bias: nn.Parameter, counts: Sequence[int]) -> None:
    """Let a head without weights give each class its share; a class without rows counts as one.

    Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002, for classes that
    exclude each other.

    Args:
        bias: Of the output layer, shape ``(C,)``.
        counts: Rows of each class.
    """
    shares = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    with torch.no_grad():
        bias.copy_((shares / shares.sum()).log())
