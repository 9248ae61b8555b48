# SPDX-License-Identifier: Apache-2.0
"""Losses by name, each with a denominator that is known before the first forward pass."""

from hftune.core.rows import Row

LOSSES = {
    "cross_entropy": Row(
        target="hftune.losses.cross_entropy:CrossEntropy",
        summary="Negative log likelihood, with class weights and label smoothing.",
    ),
}
