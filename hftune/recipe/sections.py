# SPDX-License-Identifier: Apache-2.0
"""Facts about sections that the recipe package needs: short forms, defaults, options of tasks."""

from hftune.core.registry import default_name
from hftune.losses import LOSSES
from hftune.methods import ROWS

#: The key that a section's short form, a mere text, stands for.
SHORT_FORMS: dict[str, str] = {
    "model": "path",
    "data": "path",
    "method": "name",
    "loss": "name",
    "initialization": "name",
    "distillation": "teacher",
}

#: What a section means that a recipe leaves out.
DEFAULT_NAMES = {"method": default_name(ROWS), "loss": default_name(LOSSES)}

#: Keys that are arguments of a task -> the tasks that take them.
TASK_OPTIONS = {
    "model.config.problem_type": ("text-classification",),
    "data.label_names": ("text-classification", "token-classification"),
    "data.label_separator": ("text-classification",),
    "data.block_size": ("text-generation",),
    "data.pack_documents": ("text-generation",),
    "data.system_prompt": ("text-generation",),
    "evaluation.thresholds": ("text-classification",),
    "evaluation.prior": ("text-classification",),
    "data.source_prefix": ("text2text-generation",),
    "data.max_target_length": ("text2text-generation",),
    "evaluation.generation": ("text2text-generation", "text-generation"),
}
