# SPDX-License-Identifier: Apache-2.0
"""The mean teacher: the average of the student's own weights, after every step.

Tarvainen and Valpola, "Mean teachers are better role models", 2017, arXiv:1703.01780.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from hftune.distillation.teacher import Answer, Teacher, taught
from hftune.losses.loss import ROW, Batch
from hftune.regularization.weight_averaging import Averaging

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(name: str, device: str) -> AbstractContextManager[Any]:
    """Return the context of a teacher's precision: autocast to ``bf16`` or ``fp16``, or none."""
    half = HALF.get(name)
    return torch.autocast(device, half) if half else nullcontext()


class AverageTeacher(Teacher):
    """The student with averaged weights, in evaluation mode.

    Until the average begins, these are the student's own weights. Nothing is copied: the model runs
    once more with the averages, and shares its frozen weights.

    Args:
        model: The student, not wrapped.
        averaging: Keeps the averages of trained weights; None in a sweep of the rate.
        causal: Whether position ``t`` predicts label ``t + 1``.
        precision: See :func:`precision_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        averaging: Averaging | None,
        *,
        causal: bool = False,
        precision: str = "no",
    ) -> None:
        self.model, self.averaging = model, averaging
        self.causal, self.precision = causal, precision

    def answer(self, inputs: Batch) -> Answer:
        """Run the student with averaged weights; see :class:`Teacher`."""
        averages = {} if self.averaging is None else self.averaging.averages_by_name(self.model)
        given = {key: value for key, value in inputs.items() if key not in ("labels", ROW)}
        device = inputs["input_ids"].device.type
        with _evaluating(self.model), torch.no_grad(), precision_of(self.precision, device):
            outputs: Any = functional_call(self.model, averages, (), given)
        return Answer(logits=taught(outputs.logits, inputs, causal=self.causal)[None])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode while the context lasts; then restore each module's mode."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True
