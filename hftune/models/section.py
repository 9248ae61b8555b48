# SPDX-License-Identifier: Apache-2.0
"""Keys of the section ``model:``: the pretrained model and the way it is loaded."""

from dataclasses import dataclass, field
from typing import Any, Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


AttentionName = Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"]


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The pretrained model and the way it is loaded.

    Example:
        >>> ModelSection(path="gpt2", quantization={"load_in_4bit": True}).quantizes("load_in_4bit")
        True
    """

    path: str = field(metadata={"help": "Hub id, local folder, demo:minilm or demo:smollm2."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the Hub repository."}
    )
    dtype: Dtype = field(
        default="auto",
        metadata={
            "help": "Type of the weights. auto: float32 on a CPU and for full fine-tuning, else "
            "the checkpoint's."
        },
    )
    attn_implementation: AttentionName = field(
        default="auto",
        metadata={
            "help": "auto: sdpa where the model has it, packed where that is exact, on a GPU "
            "through PyTorch's own flash attention; else eager. flash_attention_2 is the package."
        },
    )
    config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of the model's config to override."}
    )
    quantization: dict[str, Any] | None = field(
        default=None, metadata={"help": "Fields of transformers.BitsAndBytesConfig."}
    )
    classifier_pooling: Literal["cls", "mean"] = field(
        default="cls",
        metadata={
            "help": "What an encoder's classification head reads: the first position, or the mean "
            "over all tokens put in its place."
        },
    )
    keep_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Numbers of the layers that stay, from 0; the others are taken out."},
    )

    @property
    def attention(self) -> str | None:
        """The argument ``attn_implementation`` of Transformers; None lets Transformers choose."""
        return None if self.attn_implementation == "auto" else self.attn_implementation

    def quantizes(self, *switches: str) -> bool:
        """Tell whether one of the switches, such as ``load_in_4bit``, is on."""
        return any((self.quantization or {}).get(switch) for switch in switches)
