# SPDX-License-Identifier: Apache-2.0
"""What each PEFT type trains, in one line, and what it cannot do. The names say little."""

from typing import Any

from hftune.core.registry import MethodRow

LANGUAGE_MODELS = ("text-generation",)
PROMPT_LEARNING = "hftune.methods.prompt_learning:PromptLearning"
PROMPTS = "trains what stands before a row's tokens, and no weight of the base"
TOKENS = "puts virtual tokens among those of a text"


def adapter(summary: str, target: str = "hftune.methods.peft:Peft", **facts: Any) -> MethodRow:
    """Return the row of a PEFT type: an adapter beside its base."""
    return MethodRow(target=target, summary=summary, saves_adapter=True, **facts)


#: PEFT type -> row. Types that a recipe cannot ask for are not among them.
PEFT_TYPES = {
    "adalora": adapter(
        "Low-rank updates whose ranks are moved between layers.",
        "hftune.methods.adalora:AdaLora",
        changes_shape=True,
    ),
    "adamss": adapter("Subspaces of the weights, found by clustering."),
    "adaption_prompt": adapter(
        "Prompts inside the attention of the top layers (LLaMA-Adapter).",
        tasks=LANGUAGE_MODELS,
        no_merge=PROMPTS,
    ),
    "beft": adapter(
        "Biases of the value projections.",
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
        sharded=True,
    ),
    "lily": adapter(
        "Low-rank updates that layers share.",
        no_merge="routes each token to a mixture of matrices that layers share",
    ),
    "ln_tuning": adapter("The layer norms.", sharded=True),
    "loha": adapter("Products of two low-rank updates.", sharded=True),
    "lokr": adapter("Kronecker products."),
    "lora": adapter("Low-rank updates.", sharded=True),
    "miss": adapter("One shared block for all slices of the weight."),
    "oft": adapter("Orthogonal rotations of blocks.", sharded=True),
    "osf": adapter(
        "The directions of the small singular values.",
        no_unmerge="keeps no copy of the weights that it was merged into",
    ),
    "p_tuning": adapter(
        "Virtual tokens out of a small network.",
        PROMPT_LEARNING,
        starts_at_base=False,
        no_merge=PROMPTS,
        no_images=TOKENS,
    ),
    "peanut": adapter("An update that a small network computes from the weight."),
    "prefix_tuning": adapter(
        "Virtual keys and values in every layer.",
        PROMPT_LEARNING,
        starts_at_base=False,
        no_merge=PROMPTS,
        no_images=TOKENS,
        no_checkpointing="hands its prefix over as past keys, which checkpointing drops",
    ),
    "prompt_tuning": adapter(
        "Virtual tokens in front of the row.",
        PROMPT_LEARNING,
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
        tasks=LANGUAGE_MODELS,
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
    "vera": adapter("Two vectors beside fixed random matrices."),
    "waveft": adapter("A few wavelet coefficients of the update."),
}
