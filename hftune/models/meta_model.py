# SPDX-License-Identifier: Apache-2.0
"""Build a model without weights, and check that it supports the requested kernels."""

import warnings
from typing import Any

from accelerate import init_empty_weights
from transformers import PreTrainedConfig, PreTrainedModel

from hftune.core.errors import RecipeError, first_line


def empty_model(
    auto_model: Any, config: PreTrainedConfig, attention: str | None
) -> PreTrainedModel:
    """Return a model without weights, on the meta device.

    Args:
        auto_model: The ``AutoModelFor...`` class.
        config: Config of the model.
        attention: Value of ``attn_implementation``; with None Transformers chooses.

    Raises:
        RecipeError: The model does not support this attention.
    """
    options = {} if attention is None else {"attn_implementation": attention}
    with init_empty_weights(include_buffers=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: PreTrainedModel = auto_model.from_config(config, **options)
        except (ValueError, ImportError) as error:
            if attention is None:
                raise
            raise RecipeError(
                [f"model.attn_implementation: {attention}: {first_line(error)}"],
                hint="leave it out, and the model attends in the best way that it has",
            ) from error
    model.tie_weights()
    return model


def check_liger(model: PreTrainedModel) -> None:
    """Raise :class:`RecipeError` if liger-kernel has no kernels for the architecture."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    if model.config.model_type not in KNOWN:
        kind = type(model).__name__
        raise RecipeError(
            [f"training.use_liger_kernel: liger-kernel has no kernels for {kind}; leave it out"]
        )
