# SPDX-License-Identifier: Apache-2.0
"""A row of the table of methods: what a method does, and what it cannot do."""

from dataclasses import dataclass

from hftune.core.rows import Row


@dataclass(frozen=True, kw_only=True)
class MethodRow(Row):
    """One method. What is said here is held by tests/methods/test_conformance.py.

    A field that starts with ``no_`` is None, or says why not, to follow the method's name.

    Attributes:
        saves_adapter: Whether the result lies beside a base that keeps every bit; else it is a
            whole model.
        starts_at_base: Whether the model's output is that of the base before the first step.
        rewrites_base: Whether it also changes weights that get no gradient, by merging into them.
        draws: Whether a forward pass in training draws noise of its own, on each process another.
        fitted: Whether it is fitted on features; no Trainer runs.
        quantizes: Whether its base is kept in 4 bits, if the recipe does not say otherwise.
        changes_shape: Whether its weights have other shapes at the end than at the start.
        no_merge: Why the adapter cannot be put into its base.
        no_unmerge: Why it cannot be taken out again.
        no_checkpointing: Why activations cannot be computed again in the backward pass.
        no_images: Why it cannot work on a model of images.
        no_mixed_widths: Why all weights that it adapts must have one shape.
        sharded: Whether tests compare a sharded run with one of a whole model; others are refused.
    """

    saves_adapter: bool = False
    starts_at_base: bool = True
    rewrites_base: bool = False
    draws: bool = False
    fitted: bool = False
    quantizes: bool = False
    changes_shape: bool = False
    no_merge: str | None = None
    no_unmerge: str | None = None
    no_checkpointing: str | None = None
    no_images: str | None = None
    no_mixed_widths: str | None = None
    sharded: bool = False

    @property
    def merges(self) -> bool:
        """Tell whether there is an adapter that can be put into its base."""
        return self.saves_adapter and self.no_merge is None

    @property
    def leaves(self) -> str:
        """Say what a run leaves."""
        if self.fitted:
            return "a fitted classifier"
        if not self.saves_adapter:
            return "a whole model"
        return "an adapter" if self.merges else "an adapter that cannot be merged"

    @property
    def cannot(self) -> dict[str, str]:
        """Return what it cannot do -> why."""
        reasons = {
            "be merged": self.no_merge,
            "be taken out of a merged base": self.no_unmerge,
            "recompute activations": self.no_checkpointing,
            "work on images": self.no_images,
            "adapt weights of several shapes": self.no_mixed_widths,
        }
        return {what: why for what, why in reasons.items() if why is not None}
