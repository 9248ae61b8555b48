# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning, P-tuning and prefix tuning: virtual tokens learn, and the model stands still.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021, arXiv:2104.08691;
Liu et al., "GPT Understands, Too", 2021, arXiv:2103.10385 (P-tuning) and "P-Tuning v2", 2022,
arXiv:2110.07602; Li and Liang, "Prefix-Tuning", 2021, arXiv:2101.00190. The networks are PEFT's.
This module hands them what the run knows, and keeps in a checkpoint what PEFT leaves out.
"""

from typing import Any

from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.methods import method_row
from hftune.methods.peft import Peft
from hftune.tasks.context import RunContext


class PromptLearning(Peft):
    """Virtual tokens before the row, or before the keys and values of every layer.

    Args:
        name: The PEFT type.
        options: Fields of its config class.
    """

    # PEFT saves what the network makes, and would load that as what the network reads.
    state_is_whole = True

    def config(self, context: RunContext, **overrides: object) -> PeftConfig:
        """Build the PEFT config with the tokenizer of the run; see :class:`Peft`."""
        known: dict[str, Any] = {}
        given = self.options.get("num_transformer_submodules") is not None
        if self._is_in_input() and context.task_row.encoder_decoder and not given:
            # PEFT makes as many again for the decoder, and reads none of them.
            known["num_transformer_submodules"] = 1
        if self._starts_from_text():
            known["tokenizer_name_or_path"] = context.tokenizer.name_or_path
            if context.revision is not None:
                known["tokenizer_kwargs"] = {"revision": context.revision}
        return super().config(context, **overrides, **known)

    def check(self, skeleton: PreTrainedModel, context: RunContext) -> nn.Module | None:
        """Refuse heads that would read padding, and texts that do not fit; see :class:`Method`."""
        if self._is_in_input() and "score" in dict(skeleton.named_children()):
            raise HftuneError(
                f"method {self.name}: the head of a decoder would read padding",
                hint="use prefix_tuning or lora",
            )
        if self._starts_from_text():
            self._check_text(context.tokenizer)
        return super().check(skeleton, context)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return virtual tokens, the network that makes them, and new modules; see ``Method``."""
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Put them back; see :class:`Method`."""
        model.load_state_dict(state, strict=False)

    def _is_in_input(self) -> bool:
        """Whether virtual tokens are rows of the input; those of prefix tuning are a cache."""
        return method_row(self.name).virtual_tokens == "input"

    def _starts_from_text(self) -> bool:
        return self.options.get("prompt_tuning_init") == "TEXT"

    def _check_text(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """PEFT cuts a long text without a word, and repeats a short one."""
        number: int = self.options["num_virtual_tokens"]
        length = len(tokenizer(self.options["prompt_tuning_init_text"])["input_ids"])
        if length > number:
            raise HftuneError(
                f"method.prompt_tuning_init_text: it has {length} tokens, and there are {number} "
                "virtual ones",
                hint=f"shorten it, or take num_virtual_tokens: {length}",
            )
        if length < number:
            say(f"the prompt starts from {length} tokens of text, repeated to fill {number}")
