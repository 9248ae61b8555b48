# SPDX-License-Identifier: Apache-2.0
"""What every method is tried on: tiny models of each kind, and what a method needs on these."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from hftune.methods import PEFT_TYPES, ROWS, make_method, method_row
from hftune.methods.method import Method
from hftune.models.load import keep_unpacked
from hftune.tasks import task_row
from hftune.tasks.context import RunContext

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
WORDS = {"vocab_size": 40, "max_position_embeddings": 32}
#: Kind -> task, class of the model, fields of its config. All have biases and no dropout.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "encoder": (
        "text-classification",
        "BertForSequenceClassification",
        {**SIZES, **WORDS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "decoder": (
        "text-generation",
        "LlamaForCausalLM",
        {**SIZES, **WORDS, "num_key_value_heads": 2, "mlp_bias": True},
    ),
    "encoder-decoder": (
        "text2text-generation",
        "BartForConditionalGeneration",
        {
            **WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32, "decoder_start_token_id": 1,
        },
    ),
    "vit": (
        "image-classification",
        "ViTForImageClassification",
        {**SIZES, "image_size": 8, "patch_size": 4},
    ),
    "swin": (
        "image-classification",
        "SwinForImageClassification",
        {
            "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
            "num_heads": [2, 2], "window_size": 4, "drop_path_rate": 0.0,
        },
    ),
}  # fmt: skip
IMAGES = {"vit": 8, "swin": 16}
#: What a method needs on models so small; everything else runs on its defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 8},
    "diff_pruning": {"target_sparsity": 0.9},
    "fourierft": {"n_frequency": 64},
    "freeze": {"freeze_embeddings": True},
    "ln_tuning": {"target_modules": r".*(LayerNorm|layernorm|layer_?norm)[a-z_]*"},
    "lora": {"target_modules": "all-linear"},
    "miss": {"r": 8},
    "p_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "prune": {"sparsity": 0.5},
    "psoft": {"r": 8},
    "qlora": {"r": 8, "lora_dropout": 0.0, "target_modules": "all-linear"},
    "relora": {"merge_every": 2, "target_modules": "all-linear"},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": [6, 7, 8]},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "waveft": {"n_frequency": 64},
}
#: PEFT knows no architecture of images by the names that Transformers gives its layers now.
TARGETS_OF_IMAGES = ["q_proj", "v_proj"]
#: The layers of one stage of Swin, whose stages differ in width.
ONE_WIDTH = r".*\.layers\.1\..*\.[qv]_proj"
STEPS = 4


def pairs(*kinds: str, marks: Any = ()) -> list[Any]:
    """Return a case for every method and every one of the kinds that it suits."""
    return [
        pytest.param(name, kind, marks=marks, id=f"{name}-{kind}")
        for name, row in ROWS.items()
        for kind in kinds
        if row.suits(task_row(KINDS[kind][0])) and not (kind in IMAGES and row.no_images)
    ]


def options_of(name: str, kind: str | None = None) -> dict[str, Any]:
    """Return what stands under ``method:`` on a tiny model."""
    options = dict(OPTIONS.get(name, {}))
    if kind in IMAGES and name in PEFT_TYPES and "target_modules" not in options:
        one_width = kind == "swin" and ROWS[name].no_mixed_widths
        options["target_modules"] = ONE_WIDTH if one_width else TARGETS_OF_IMAGES
        if name == "ia3":
            options["feedforward_modules"] = []
    return options


@cache
def original(kind: str) -> Any:
    """Return the random model of a kind; no weight is as it would be by default."""
    _, name, fields = KINDS[kind]
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**fields)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


class Bases:
    """The random models, on a disk where that is needed.

    Args:
        root: A folder for them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str) -> Path:
        """Return where the model of a kind lies."""
        folder = self.root / kind
        if not folder.exists():
            original(kind).save_pretrained(folder)
        return folder

    def fresh(self, kind: str, *, quantized: bool = False) -> Any:
        """Return the model of a kind; on request with 4-bit weights, but for its head."""
        if not quantized:
            return copy.deepcopy(original(kind))
        model = getattr(transformers, KINDS[kind][1]).from_pretrained(
            self.folder(kind),
            quantization_config=BitsAndBytesConfig(
                **ROWS["qlora"].quantization, llm_int8_skip_modules=["classifier", "lm_head"]
            ),
        )
        keep_unpacked(model)
        return model.eval()


def seed(number: int) -> None:
    """Seed the CPU's generator; ``torch.manual_seed`` is slow where there is no GPU."""
    torch.default_generator.manual_seed(number)


def context_of(kind: str, **more: Any) -> RunContext:
    """Return what a method may know; the head of a classifier counts as new."""
    task = KINDS[kind][0]
    new = ("classifier",) if "classification" in task else ()
    return RunContext(task=task, new_modules=new, num_training_steps=STEPS, **more)


def apply(name: str, kind: str, bases: Bases, **more: Any) -> tuple[Any, Method, nn.Module]:
    """Return a base, a method, and the base as the method changed it.

    Args:
        name: The method's.
        kind: The base's.
        bases: Where it comes from.
        more: For the method's context.
    """
    base = bases.fresh(kind, quantized=method_row(name).quantization is not None)
    method = make_method(name, options_of(name, kind))
    seed(0)
    model = method.apply(base, context_of(kind, **more))
    if more.get("gradient_checkpointing"):  # after the method, as the Trainer does
        base.gradient_checkpointing_enable({"use_reentrant": False})
    return base, method, model


def batch(kind: str) -> dict[str, Tensor]:
    """Return two rows for a model."""
    generator = torch.Generator().manual_seed(1)
    if kind in IMAGES:
        size = IMAGES[kind]
        return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}
    ids = torch.randint(3, 40, (2, 6), generator=generator)
    decoder = {"decoder_input_ids": ids[:, :4]} if kind == "encoder-decoder" else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **decoder}


def logits(model: Any, kind: str) -> Tensor:
    """Return what a model makes of the batch in evaluation."""
    model.eval()
    with torch.no_grad():
        result: Tensor = model(**batch(kind)).logits
    return result


def backward(model: Any, method: Method, kind: str, *, autocast: bool = False) -> Tensor:
    """Compute the gradients of a step with a fixed draw of whatever is drawn; return the loss."""
    seed(1)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**batch(kind)).logits
    loss: Tensor = (output.float() - 1).square().mean()
    penalty = method.penalty(model)
    loss = loss if penalty is None else loss + penalty
    loss.backward()
    return loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that there are."""
    found = ((name, weight.grad) for name, weight in model.named_parameters())
    return {name: grad for name, grad in found if grad is not None}


@cache
def arguments() -> TrainingArguments:
    """Return what callbacks may ask."""
    return TrainingArguments(use_cpu=True, max_steps=STEPS, report_to="none")


def train(model: Any, method: Method, kind: str) -> None:
    """Train for some steps, the method's callbacks included."""
    chosen = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=0.05, weight_decay=0)
    callbacks = method.callbacks(model)
    handler = CallbackHandler(callbacks, model, None, optimizer, None)
    state, control = TrainerState(max_steps=STEPS), TrainerControl()
    handler.on_train_begin(arguments(), state, control)
    for step in range(STEPS):
        state.global_step = step
        handler.on_step_begin(arguments(), state, control)
        optimizer.zero_grad()
        backward(model, method, kind)
        handler.on_pre_optimizer_step(arguments(), state, control)
        optimizer.step()
        handler.on_optimizer_step(arguments(), state, control)
        state.global_step = step + 1
        handler.on_step_end(arguments(), state, control)
    handler.on_train_end(arguments(), state, control)
