# SPDX-License-Identifier: Apache-2.0
"""Facts about sections that the recipe package needs: short forms and defaults."""

from hftune.core.registry import default_name
from hftune.losses import LOSSES
from hftune.methods import ROWS

#: The key that a section's short form, a string, stands for.
SHORT_FORMS: dict[str, str] = {
    "model": "path",
    "data": "path",
    "method": "name",
    "loss": "name",
    "initialization": "name",
    "distillation": "teacher",
}

#: Defaults of sections that a recipe leaves out.
DEFAULT_NAMES = {"method": default_name(ROWS), "loss": default_name(LOSSES)}
