# SPDX-License-Identifier: Apache-2.0
"""Diff pruning: a sparse difference to every weight, Guo, Rush and Kim 2021, arXiv:2012.07463.

Importing this package lets PEFT know the type, so that ``PeftModel.from_pretrained`` loads it.
"""

from hftune.methods.diff_pruning.config import DiffPruningConfig
from hftune.methods.diff_pruning.model import DiffPruningModel
from hftune.methods.peft_tuners import OwnPeftType, register

__all__ = ["DiffPruningConfig", "DiffPruningModel"]

register(OwnPeftType["DIFF_PRUNING"], DiffPruningConfig, DiffPruningModel)
