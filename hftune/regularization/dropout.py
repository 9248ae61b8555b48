# SPDX-License-Identifier: Apache-2.0
"""Dropout by one name, whatever a model's config calls it: Srivastava et al., "Dropout", 2014.

The fields are set before the model is made, so that its own modules have the new probability.
"""

from collections.abc import Mapping

from transformers import PreTrainedConfig

from hftune.core.errors import HftuneError
from hftune.regularization import REGULARIZATIONS


def set_dropout(config: PreTrainedConfig, wanted: Mapping[str, float]) -> None:
    """Set every field of a config that a key stands for.

    Args:
        config: Of the text, where a model has several parts; it is changed.
        wanted: Keys of ``regularization`` with ``config_fields``, and the probabilities.

    Raises:
        HftuneError: The config has no such field.
    """
    text = config.get_text_config()
    known = text.to_dict()
    for key, probability in wanted.items():
        found = [name for name in REGULARIZATIONS[key].config_fields if name in known]
        if not found:
            others = [name for name in known if "drop" in name]
            raise HftuneError(
                f"regularization.{key}: {type(text).__name__} has no such dropout",
                hint=f"what it has: {', '.join(others) or 'none'} (model.config)",
            )
        for name in found:
            setattr(text, name, probability)


def has_drop_path(config: PreTrainedConfig) -> bool:
    """Tell whether a model drops paths by itself."""
    return any(name in config.to_dict() for name in REGULARIZATIONS["drop_path"].config_fields)
