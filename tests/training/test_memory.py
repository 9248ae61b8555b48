# SPDX-License-Identifier: Apache-2.0
"""Exact bytes against a count by hand; activations against what torch really keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from hftune.losses.cross_entropy import CrossEntropy
from hftune.methods.contract import MethodContext
from hftune.methods.head_only import HeadOnly
from hftune.optimizers.make import state_bytes
from hftune.training.memory import estimate_memory

ROWS, LENGTH = 8, 64
SIZE: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": LENGTH,
}
BERT = BertConfig(**SIZE, problem_type="single_label_classification")
LLAMA = LlamaConfig(**{**SIZE, "vocab_size": 4000})


def bert_parameters(c: BertConfig) -> tuple[int, int]:
    """Count trunk and head of a BERT classifier by its shapes."""
    width, inner = c.hidden_size, c.intermediate_size
    norm = 2 * width
    embeddings = (c.vocab_size + c.max_position_embeddings + c.type_vocab_size) * width + norm
    attention = 4 * (width * width + width) + norm
    mlp = (width * inner + inner) + (inner * width + width) + norm
    pooler = width * width + width
    trunk = embeddings + c.num_hidden_layers * (attention + mlp) + pooler
    return trunk, width * c.num_labels + c.num_labels


def classifier() -> nn.Module:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(BERT)


@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "states"),
    [("adamw_torch_fused", 8), ("adamw_8bit", 2), ("sgd", 0), ("adagrad", 4)],
)
def test_counted_exactly(head_only: bool, optimizer: str, states: int) -> None:
    model = classifier()
    trunk, head = bert_parameters(BERT)
    trained = head if head_only else trunk + head
    if head_only:
        HeadOnly().apply(model, MethodContext(task="text-classification"))
    found = estimate_memory(model, BERT, rows=1, length=1, state_bytes=state_bytes(optimizer, None))
    assert found.weights == 4 * (trunk + head)
    assert found.gradients == 4 * trained
    assert found.optimizer == states * trained
    assert found.total == 4 * (trunk + head + trained) + states * trained + found.activations


def test_only_frozen_weights_are_small() -> None:
    model = classifier()
    trunk, head = bert_parameters(BERT)
    HeadOnly().apply(model, MethodContext(task="text-classification"))
    half = estimate_memory(model, BERT, rows=1, length=1, bytes_per_weight=2)
    assert half.weights == 2 * trunk + 4 * head
    width, inner = BERT.hidden_size, BERT.intermediate_size
    linear = BERT.num_hidden_layers * (4 * width**2 + 2 * width * inner) + width**2
    quantized = estimate_memory(model, BERT, rows=1, length=1, bytes_per_weight=0.5)
    assert quantized.weights == linear // 2 + 4 * (trunk - linear + head)


def test_adam_state_is_what_torch_keeps() -> None:
    model = AutoModelForSequenceClassification.from_config(BERT)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [v for s in optimizer.state.values() for v in s.values() if v.dim() > 0]
    kept = sum(moment.nbytes for moment in moments)
    assert estimate_memory(model, BERT, rows=1, length=1).optimizer == kept


def kept_for_backward(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes that autograd saves in a training step, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        CrossEntropy().total(model, batch)
    return sum(storage.nbytes() for storage in storages.values())


def step_batch(config: PreTrainedConfig) -> dict[str, Tensor]:
    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH))
    labels = ids if config is LLAMA else torch.zeros(ROWS, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("config", [BERT, LLAMA], ids=["bert", "llama"])
def test_activations_are_right_within_a_factor_of_two(config: PreTrainedConfig) -> None:
    auto = AutoModelForCausalLM if config is LLAMA else AutoModelForSequenceClassification
    model = auto.from_config(config).train()
    measured = kept_for_backward(model, step_batch(config))
    estimated = estimate_memory(model, config, rows=ROWS, length=LENGTH).activations
    assert 0.5 < estimated / measured < 2, f"estimated {estimated:,}, kept {measured:,}"


def test_recomputing_keeps_each_layers_input_and_one_layer() -> None:
    one_layer = BertConfig(**{**SIZE, "num_hidden_layers": 1}, problem_type=BERT.problem_type)
    model = classifier()
    layer = estimate_memory(model, one_layer, rows=ROWS, length=LENGTH).activations
    inputs = 4 * ROWS * LENGTH * BERT.hidden_size * BERT.num_hidden_layers
    found = estimate_memory(model, BERT, rows=ROWS, length=LENGTH, recompute=True)
    assert found.activations == layer + inputs


def test_activations_grow_with_the_batch() -> None:
    model = classifier()
    one = estimate_memory(model, BERT, rows=1, length=LENGTH).activations
    assert estimate_memory(model, BERT, rows=4, length=LENGTH).activations == 4 * one
    half = estimate_memory(model, BERT, rows=1, length=LENGTH, bytes_per_activation=2)
    assert 2 * half.activations == one
