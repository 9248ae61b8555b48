# SPDX-License-Identifier: Apache-2.0
"""What each PEFT type trains, in one line, and what it cannot do. The names say little."""

from collections.abc import Mapping
from typing import Any

from hftune.core.registry import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    FRACTION,
    WITHIN,
    MethodRow,
    Schema,
)

PROMPT_LEARNING = "hftune.methods.prompt_learning:PromptLearning"
PROMPTS = "trains what stands before a row's tokens, and no weight of the base"
TOKENS = "puts virtual tokens among those of a text"


#: PEFT types that need more than a config -> what it is.
NOT_FROM_A_RECIPE = {
    "cartridge": "it distils a cache of keys and values from a corpus first",
    "cpt": "it takes token ids and types of its context, written for one tokenizer",
    "multitask_prompt_tuning": "it takes a task id with every row",
    "poly": "it takes a task id with every row",
    "shadow": "it needs a shadow model beside the base",
    "xlora": "it mixes adapters that were trained before",
}
#: Optimizer steps, or below 1 a share of the run; the class itself has whole numbers alone.
STEPS: Schema = {"type": "number", "minimum": 0}
#: Ranges of options that many of PEFT's classes have.
PEFT_RANGES: dict[str, Schema] = {
    "r": AT_LEAST_ONE,
    "alpha": ABOVE_ZERO,
    "lora_alpha": ABOVE_ZERO,
    "lora_dropout": FRACTION,
}


VIRTUAL_TOKENS = {"num_virtual_tokens": 20}
VIRTUAL_TOKEN_RANGES: dict[str, Schema] = {"num_virtual_tokens": AT_LEAST_ONE}


def one_of(*names: str) -> Schema:
    """Return a schema in place of the class's own, which would take any text beside the names."""
    return {"anyOf": [{"enum": list(names), "type": "string"}]}


def adapter(
    summary: str,
    target: str = "hftune.methods.peft:Peft",
    ranges: Mapping[str, Schema] | None = None,
    **facts: Any,
) -> MethodRow:
    """Return the row of a PEFT type: an adapter beside its base."""
    return MethodRow(
        target=target,
        summary=summary,
        saves="adapter",
        trains="adapter",
        ranges={**PEFT_RANGES, **(ranges or {})},
        **facts,
    )


#: PEFT type -> row. Types that a recipe cannot ask for are not among them.
PEFT_TYPES = {
    "adalora": adapter(
        "Low-rank updates whose ranks are moved between layers.",
        "hftune.methods.adalora:AdaLora",
        ranges={
            "target_r": AT_LEAST_ONE,
            "init_r": AT_LEAST_ONE,
            "tinit": STEPS,
            "tfinal": STEPS,
            "deltaT": AT_LEAST_ONE,
            "beta1": WITHIN,
            "beta2": WITHIN,
            "orth_reg_weight": AT_LEAST_ZERO,
        },
        defaults={"init_r": 12, "target_r": 8, "tinit": 0.1, "tfinal": 0.5},
        sets_weights=True,
        settles_late=True,
        changes_shape=True,
    ),
    "adamss": adapter("Subspaces of the weights, found by clustering."),
    "adaption_prompt": adapter(
        "Prompts inside the attention of the top layers (LLaMA-Adapter).",
        labels=("next_token",),
        required=("adapter_len", "adapter_layers"),
        no_merge=PROMPTS,
        no_config_switch={"attention_bias": "PEFT adds the bias of o_proj a second time"},
    ),
    "beft": adapter(
        "Biases of the value projections.",
        learning_rate=1e-3,
        no_merge="adds biases to layers that may have none",
    ),
    "boft": adapter("Orthogonal rotations as butterfly products.", sharded=True),
    "c3a": adapter(
        "Circulant blocks.",
        starts_at_base=False,
    ),
    "deft": adapter("A projection out of the weight and an injection into it."),
    "delora": adapter("Low-rank updates with bounded norm."),
    "fourierft": adapter(
        "A few Fourier coefficients of the update.",
        starts_at_base=False,
        sharded=True,
    ),
    "frod": adapter(
        "An update in a basis taken from the weights of all layers.",
        no_mixed_widths="takes one basis from the weights of all layers",
    ),
    "glora": adapter("Low-rank changes of weight and bias, scaled and shifted."),
    "gralora": adapter("Low-rank updates for blocks of the weight."),
    "hira": adapter("A low-rank factor multiplied into the weight."),
    "hra": adapter("Householder reflections."),
    "ia3": adapter(
        "Vectors that scale keys, values and the feed-forward layer.",
        learning_rate=8e-3,
        sharded=True,
    ),
    "lily": adapter(
        "Low-rank updates that layers share.",
        no_merge="routes each token to a mixture of matrices that layers share",
    ),
    "ln_tuning": adapter("The layer norms.", learning_rate=1e-3, sharded=True),
    "loha": adapter("Products of two low-rank updates.", sharded=True),
    "lokr": adapter("Kronecker products."),
    "lora": adapter(
        "Low-rank updates.",
        default=True,
        defaults={"target_modules": "all-linear"},
        starter_options=(
            ("r", 16, "rank: more learns more, in more memory; 8 to 32 rarely differ"),
            ("lora_alpha", 32, "the update is scaled by lora_alpha / r"),
        ),
        has_lora_pairs=True,
        recompute_tested=True,
        sharded=True,
    ),
    "miss": adapter("One shared block for all slices of the weight."),
    "oft": adapter("Orthogonal rotations of blocks.", sharded=True),
    "osf": adapter(
        "The directions of the small singular values.",
        no_unmerge="keeps no copy of the weights that it was merged into",
    ),
    "p_tuning": adapter(
        "Virtual tokens out of a small network.",
        PROMPT_LEARNING,
        ranges={
            **VIRTUAL_TOKEN_RANGES,
            "encoder_reparameterization_type": one_of("MLP", "LSTM"),
            "encoder_hidden_size": AT_LEAST_ONE,
            "encoder_num_layers": AT_LEAST_ONE,
            "encoder_dropout": FRACTION,
        },
        defaults=VIRTUAL_TOKENS,
        learning_rate=1e-2,
        virtual_tokens="input",
        starts_at_base=False,
        no_merge=PROMPTS,
        no_images=TOKENS,
    ),
    "peanut": adapter("An update that a small network computes from the weight."),
    "prefix_tuning": adapter(
        "Virtual keys and values in every layer.",
        PROMPT_LEARNING,
        ranges={**VIRTUAL_TOKEN_RANGES, "encoder_hidden_size": AT_LEAST_ONE},
        defaults=VIRTUAL_TOKENS,
        learning_rate=1e-2,
        virtual_tokens="cache",
        starts_at_base=False,
        no_merge=PROMPTS,
        no_images=TOKENS,
        no_checkpointing="hands its prefix over as past keys, which checkpointing drops",
    ),
    "prompt_tuning": adapter(
        "Virtual tokens in front of the row.",
        PROMPT_LEARNING,
        ranges={
            **VIRTUAL_TOKEN_RANGES,
            "prompt_tuning_init": one_of("TEXT", "SAMPLE_VOCAB", "RANDOM"),
        },
        defaults=VIRTUAL_TOKENS,
        learning_rate=3e-2,
        virtual_tokens="input",
        starts_at_base=False,
        no_merge=PROMPTS,
        no_images=TOKENS,
    ),
    "psoft": adapter("An orthogonal map inside the leading subspace."),
    "pvera": adapter("VeRA's vectors with a distribution.", draws=True),
    "randlora": adapter("Scalings of a sum of fixed random low-rank matrices."),
    "road": adapter("Rotations of pairs of outputs."),
    "shira": adapter("A sparse random selection of the weights."),
    "supertuning": adapter("The largest weights."),
    "tinylora": adapter("A handful of numbers, projected through fixed tensors."),
    "trainable_tokens": adapter(
        "The embeddings of chosen tokens.",
        required=("token_indices",),
        labels=("next_token",),
        sharded=True,
    ),
    "unilora": adapter(
        "One vector, projected to all low-rank updates.",
        starts_at_base=False,
    ),
    "vblora": adapter(
        "Choices from a bank of vectors that all layers share.",
        starts_at_base=False,
    ),
    "vera": adapter("Two vectors beside fixed random matrices.", learning_rate=4e-3),
    "waveft": adapter("A few wavelet coefficients of the update."),
}
