# SPDX-License-Identifier: Apache-2.0
"""One weight a label, as a recipe gives them: a list in label order, or by name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hftune.core.errors import HftuneError

NAMED = 20


def label_weights(
    key: str, given: Sequence[float] | Mapping[str, float], labels: Sequence[str]
) -> Tensor:
    """Return one weight a label, float32, shape ``(C,)``; names left out weigh 1.

    Args:
        key: Where the recipe says them, for the message.
        given: A list in label order, or label name -> weight.
        labels: The names, by id.

    Raises:
        HftuneError: A label is unknown, the list has the wrong length, or a weight is not finite.
    """
    if isinstance(given, Mapping):
        by_name = {str(name): weight for name, weight in given.items()}
        unknown = sorted(by_name.keys() - set(labels))
        if unknown:
            raise HftuneError(
                f"{key}: unknown labels {', '.join(unknown)}",
                hint=f"labels: {', '.join(labels[:NAMED])}",
            )
        given = [by_name.get(label, 1.0) for label in labels]
    if len(given) != len(labels):
        raise HftuneError(
            f"{key}: {len(given)} weights for {len(labels)} labels",
            hint=f"labels in order: {', '.join(labels[:NAMED])}",
        )
    weights = torch.tensor([float(weight) for weight in given])
    if not weights.isfinite().all():
        raise HftuneError(f"{key}: weights must be finite")
    return weights
