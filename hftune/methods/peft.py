# SPDX-License-Identifier: Apache-2.0
"""Every PEFT type by its own name, with its own fields: ``{name: lora, r: 8, use_dora: true}``.

Nothing of PEFT is retyped here. This module turns the recipe's options into the config class that
PEFT lists under the name and adds the modules that the checkpoint lacks. Types that take more than
that have a module of their own.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, get_type_hints

from peft import PeftConfig, get_peft_model, prepare_model_for_kbit_training
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import TypeAdapter
from torch import nn
from transformers import PreTrainedModel

from hftune.core.errors import HftuneError
from hftune.methods import method_row
from hftune.methods.method import Method
from hftune.methods.peft_tuners import register_tuners
from hftune.methods.peft_types import NOT_FROM_A_RECIPE
from hftune.tasks.context import RunContext

#: How torch says that a model on the meta device has shapes and no numbers.
NO_WEIGHTS = re.compile("meta tensor|register_meta|device meta|meta device", re.IGNORECASE)
TAKE_LORA = "lora works on every kind of model"


def peft_configs() -> dict[str, type[PeftConfig]]:
    """Return recipe name -> config class of every PEFT type that a recipe can ask for, and ours.

    Example:
        >>> peft_configs()["lora"].__name__
        'LoraConfig'
    """
    register_tuners()
    configs = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: config for name, config in configs.items() if name not in NOT_FROM_A_RECIPE}


class Peft(Method):
    """A PEFT adapter on a frozen base; modules that the checkpoint lacks train beside it.

    Args:
        name: The PEFT type in lower case.
        options: Fields of its config class; nested configs as dicts.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name = name
        self.options = options
        self.config_class = peft_configs()[name]

    def config(self, context: RunContext, **overrides: object) -> PeftConfig:
        """Build the PEFT config, with the recipe's options and ``overrides`` over them.

        Raises:
            HftuneError: PEFT's own constructor refuses the options, or the method cannot work so.
        """
        row = method_row(self.name)
        if row.no_images is not None and context.task_row.modality != "text":
            raise HftuneError(
                f"method {self.name} {row.no_images}, and {context.task} has no texts",
                hint=TAKE_LORA,
            )
        if row.no_checkpointing is not None and context.gradient_checkpointing:
            raise HftuneError(
                f"training.gradient_checkpointing: {self.name} {row.no_checkpointing}"
            )
        fields = {field.name for field in dataclasses.fields(self.config_class)}
        hints = get_type_hints(self.config_class)
        options: dict[str, Any] = {
            key: TypeAdapter(hints[key]).validate_python(value)
            if isinstance(value, dict)
            else value
            for key, value in (self.options | overrides).items()
        }
        options["task_type"] = context.task_row.peft_task_type  # of images PEFT knows no task
        if "modules_to_save" in fields and context.new_modules:
            chosen = options.get("modules_to_save") or []
            options["modules_to_save"] = [*chosen, *(set_minus(context.new_modules, chosen))]
        try:
            return self.config_class(**options)
        except (ValueError, TypeError, ImportError) as error:
            raise HftuneError(f"method {self.name}: {error}") from error

    def check(self, skeleton: PreTrainedModel, context: RunContext) -> nn.Module | None:
        """Put the adapter on a model without weights; see :class:`Method`."""
        row = method_row(self.name)
        missing = [key for key in row.required if not self.options.get(key)]
        if missing:
            raise HftuneError(f"method {self.name} needs {' and '.join(missing)}")
        for option in ("target_modules", "modules_to_save", "exclude_modules"):
            self._check_names(option, skeleton)
        for switch, why in row.no_config_switch.items():
            if getattr(skeleton.config, switch, False):
                raise HftuneError(f"method {self.name} does not fit a model with {switch}: {why}",
                                  hint=TAKE_LORA)  # fmt: skip
        # A named initialisation computes from weights, which are not here.
        named = isinstance(self.options.get("init_lora_weights"), str)
        start = {"init_lora_weights": True} if named else {}
        config = self.config(context, **start, **self._spared_heads(skeleton, context))
        try:
            return get_peft_model(skeleton, config)
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            if isinstance(error, RuntimeError) and NO_WEIGHTS.search(str(error)):
                return None  # a start that reads weights, as adamss has: no misfit
            hint = None
            if "target_modules" in str(error):
                layers = _layer_names(dict(skeleton.named_modules()))
                hint = f"method.target_modules: candidates are {', '.join(layers)}, or all-linear"
            raise HftuneError(
                f"method {self.name} does not fit {type(skeleton).__name__}: {error}", hint=hint
            ) from error

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Wrap the model; see :class:`Method`."""
        if getattr(model, "is_quantized", False):  # recomputation is the Trainer's to switch on
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        config = self.config(context, **self._spared_heads(model, context))
        try:
            adapted = get_peft_model(model, config, revision=context.revision)
        except RuntimeError as error:
            why = method_row(self.name).no_mixed_widths
            if why is None:
                raise
            raise HftuneError(
                f"method {self.name} {why}, and those of {type(model).__name__} differ: {error}",
                hint="method.target_modules: a pattern for layers of one width",
            ) from error
        if context.mixed_precision != "no":
            for parameter in adapted.parameters():
                if parameter.requires_grad:  # small updates vanish in half precision
                    parameter.data = parameter.data.float()
        return adapted

    def _spared_heads(self, model: PreTrainedModel, context: RunContext) -> dict[str, Any]:
        """Leave the head of a tagger out of all-linear, the default of some types: it trains whole.

        PEFT does so by itself for classifiers of sequences and for language models.
        """
        fields = {field.name for field in dataclasses.fields(self.config_class)}
        everywhere = self.options.get("target_modules") in (None, "all-linear")
        given = self.options.get("exclude_modules") or "exclude_modules" not in fields
        if context.task_row.label_kind != "token" or not everywhere or given:
            return {}
        heads = [name for name, part in model.named_children() if list(part.parameters())]
        return {"exclude_modules": set_minus(heads, [model.base_model_prefix])}

    def _check_names(self, option: str, skeleton: nn.Module) -> None:
        names = self.options.get(option)
        if not isinstance(names, list):
            return  # a pattern, all-linear, or PEFT's choice: PEFT says so when it finds nothing
        modules = dict(skeleton.named_modules())
        missing = [name for name in names if not any(_is(name, module) for module in modules)]
        if missing:
            what = "nothing" if len(missing) == len(names) else f"only {set_minus(names, missing)}"
            raise HftuneError(
                f"method.{option}: {missing} {'is' if len(missing) == 1 else 'are'} not in "
                f"{type(skeleton).__name__}; the list matches {what}",
                hint=f"candidates: {', '.join(_layer_names(modules))}, or all-linear",
            )


def set_minus(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Return ``names`` without ``taken``, in order.

    Example:
        >>> set_minus(["q_proj", "k_proj", "v_proj"], ["k_proj"])
        ['q_proj', 'v_proj']
    """
    gone = set(taken)
    return [name for name in names if name not in gone]


def _is(name: str, module: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _layer_names(modules: dict[str, nn.Module]) -> list[str]:
    """Return the last name parts of the layers that an adapter can sit on."""
    kinds = ("Linear", "Conv1D", "Conv2d", "Embedding")
    return sorted({n.rpartition(".")[2] for n, m in modules.items() if type(m).__name__ in kinds})
