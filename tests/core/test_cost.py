# SPDX-License-Identifier: Apache-2.0
"""Costs add up, factor by factor, and nothing costs nothing."""

from dataclasses import fields

from hftune.core.cost import StepCost


def test_costs_add_up() -> None:
    one = StepCost(live_passes=1, forward_passes=1, batch_factor=2, logits="chunked", extra_bytes=3)
    other = StepCost(live_passes=1, batch_factor=3, logits="whole", extra_bytes=4)
    for total in (one + other, other + one):
        assert (total.live_passes, total.forward_passes, total.batch_factor) == (2, 1, 6)
        assert (total.logits, total.extra_bytes) == ("whole", 7)
    assert one + StepCost() == StepCost() + one == one
    assert sum([one, other], StepCost()) == one + other


def test_no_field_is_left_out_of_a_sum() -> None:
    """Each number is its double in the sum with itself, but for the factor of the batch."""
    numbers = [field.name for field in fields(StepCost) if field.name != "logits"]
    one = StepCost(**dict.fromkeys(numbers, 3))  # type: ignore[arg-type]
    total = one + one
    for name in numbers:
        assert getattr(total, name) == (9 if name == "batch_factor" else 6)


def test_only_chunks_become_whole() -> None:
    assert StepCost(logits="chunked").with_whole_logits().logits == "whole"
    assert StepCost(logits="none").with_whole_logits().logits == "none"


def test_runs_are_passes_times_rows() -> None:
    assert StepCost(forward_passes=2, batch_factor=2).runs == 4
