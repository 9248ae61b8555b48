# SPDX-License-Identifier: Apache-2.0
"""How a PEFT tuner enters from outside: PEFT looks every type up in three mappings.

PEFT's own ``register_peft_method`` refuses names that its enumeration lacks. The mappings are no
documented interface; the bounds of the dependency and a test hold them.
"""

import enum
from typing import Any

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner


class TunerType(enum.StrEnum):
    """Names of our own beside ``peft.PeftType``; Transformers reads their ``value``."""

    DIFF_PRUNING = "DIFF_PRUNING"


def register(kind: TunerType, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Let PEFT find a tuner by its name, in recipes' configs and in saved adapters.

    Args:
        kind: Its name.
        config: Its config class, which sets ``peft_type`` to ``kind``.
        tuner: Its model class; ``tuner.prefix`` opens the names of its parameters.
    """
    name: Any = kind  # the mappings' keys are declared as PEFT's own enumeration
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = tuner.prefix
