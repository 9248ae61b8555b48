# SPDX-License-Identifier: Apache-2.0
"""Weights set to zero, or cut out, while the rest goes on training."""

from hftune.methods.prune.config import PruneConfig
from hftune.methods.prune.method import Prune

__all__ = ["Prune", "PruneConfig"]
