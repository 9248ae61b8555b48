# SPDX-License-Identifier: Apache-2.0
"""Rows of the PEFT types: a line on the trained parameters, and facts. The names say little."""

from hftune.core.rules import Rule, option
from hftune.methods.adalora.row import ADALORA
from hftune.methods.peft_row import LORA_RULES, PROMPTS, adapter
from hftune.methods.prompt_learning.row import P_TUNING, PREFIX_TUNING, PROMPT_TUNING

#: PEFT types that need more than a config -> what it is.
NOT_FROM_A_RECIPE = {
    "cartridge": "it distils a cache of keys and values from a corpus first",
    "cpt": "it takes token ids and types of its context, written for one tokenizer",
    "multitask_prompt_tuning": "it takes a task id with every row",
    "poly": "it takes a task id with every row",
    "shadow": "it needs a shadow model beside the base",
    "xlora": "it mixes adapters that were trained before",
}

#: PEFT type -> row. Types that a recipe cannot ask for are not among them.
PEFT_TYPES = {
    "adalora": ADALORA,
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
        rules=LORA_RULES,
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
        rules=(
            Rule(
                "method",
                "osf takes every linear layer, the head of a tagger too; name "
                "method.target_modules",
                lambda s: (
                    s.task_row.label_kind == "token"
                    and option(s, "target_modules") in (None, "all-linear")
                ),
            ),
        ),
        no_unmerge="keeps no copy of the weights that it was merged into",
    ),
    "p_tuning": P_TUNING,
    "peanut": adapter("An update that a small network computes from the weight."),
    "prefix_tuning": PREFIX_TUNING,
    "prompt_tuning": PROMPT_TUNING,
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
