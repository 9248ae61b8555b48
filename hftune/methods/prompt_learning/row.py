# SPDX-License-Identifier: Apache-2.0
"""Facts about the three methods with virtual tokens and rules about their options."""

from functools import partial

from hftune.core.registry import AT_LEAST_ONE, FRACTION, Schema
from hftune.core.rules import Rule, option
from hftune.methods.peft_row import PROMPTS, adapter, one_of

VIRTUAL_TOKENS: dict[str, Schema] = {"num_virtual_tokens": AT_LEAST_ONE}

prompt_learning = partial(
    adapter,
    target="hftune.methods.prompt_learning.method:PromptLearning",
    defaults={"num_virtual_tokens": 20},
    starts_at_base=False,
    no_merge=PROMPTS,
    no_images="puts virtual tokens among those of a text",
)

P_TUNING = prompt_learning(
    "Virtual tokens out of a small network.",
    ranges={
        **VIRTUAL_TOKENS,
        "encoder_reparameterization_type": one_of("MLP", "LSTM"),
        "encoder_hidden_size": AT_LEAST_ONE,
        "encoder_num_layers": AT_LEAST_ONE,
        "encoder_dropout": FRACTION,
    },
    rules=(
        Rule(
            "method.encoder_reparameterization_type",
            "encoder_num_layers and encoder_dropout are those of an LSTM; the MLP of p_tuning has "
            "three layers and no dropout",
            lambda s: (
                option(s, "encoder_reparameterization_type") != "LSTM"
                and (
                    option(s, "encoder_num_layers") not in (None, 2)
                    or bool(option(s, "encoder_dropout"))
                )
            ),
        ),
    ),
    learning_rate=1e-2,
    virtual_tokens="input",
)

PREFIX_TUNING = prompt_learning(
    "Virtual keys and values in every layer.",
    ranges={**VIRTUAL_TOKENS, "encoder_hidden_size": AT_LEAST_ONE},
    rules=(
        Rule(
            "method.encoder_hidden_size",
            "it is the width of the prefix's network, which prefix_projection: true makes",
            lambda s: (
                option(s, "encoder_hidden_size") is not None and not option(s, "prefix_projection")
            ),
        ),
    ),
    learning_rate=1e-2,
    virtual_tokens="cache",
    no_checkpointing="hands its prefix over as past keys, which checkpointing drops",
)

PROMPT_TUNING = prompt_learning(
    "Virtual tokens in front of the row.",
    ranges={**VIRTUAL_TOKENS, "prompt_tuning_init": one_of("TEXT", "SAMPLE_VOCAB", "RANDOM")},
    rules=(
        Rule(
            "method.prompt_tuning_init_text",
            "prompt_tuning_init: TEXT starts from a text: give one that is not empty",
            lambda s: (
                option(s, "prompt_tuning_init") == "TEXT"
                and not (option(s, "prompt_tuning_init_text") or "").strip()
            ),
        ),
        Rule(
            "method.prompt_tuning_init_text",
            "the text has an effect only with prompt_tuning_init: TEXT",
            lambda s: (
                option(s, "prompt_tuning_init_text") is not None
                and option(s, "prompt_tuning_init") != "TEXT"
            ),
        ),
        Rule(
            "method.tokenizer_name_or_path",
            "the text is read by the model's own tokenizer: leave out the name and "
            "tokenizer_kwargs",
            lambda s: (
                option(s, "tokenizer_name_or_path") is not None
                or option(s, "tokenizer_kwargs") is not None
            ),
        ),
    ),
    learning_rate=3e-2,
    virtual_tokens="input",
)
