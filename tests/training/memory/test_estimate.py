# SPDX-License-Identifier: Apache-2.0
"""Exact bytes against a count by hand; activations against what torch really keeps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
)

from hftune.core.cost import StepCost
from hftune.methods.head_only import HeadOnly
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.speed.padding_free import padding_free
from hftune.tasks.context import RunContext
from hftune.training.memory.activations import kept_bytes
from hftune.training.memory.estimate import PLAIN, estimate_memory

ROWS, LENGTH = 8, 64
SIZE: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": LENGTH,
}
BERT = BertConfig(
    **SIZE, problem_type="single_label_classification", attention_probs_dropout_prob=0.0
)
LLAMA = LlamaConfig(**{**SIZE, "vocab_size": 4000})
GPT2 = GPT2Config(
    vocab_size=500, n_embd=128, n_layer=4, n_head=4, n_positions=LENGTH, attn_pdrop=0.0
)


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
        HeadOnly().apply(model, RunContext(task="text-classification"))
    each = StepCost(bytes_per_weight=OPTIMIZERS[optimizer].state_bytes_of({}))
    found = estimate_memory(model, rows=1, length=1, cost=each + StepCost(live_passes=1))
    assert found.weights == 4 * (trunk + head)
    assert found.gradients == 4 * trained
    assert found.optimizer == states * trained
    passing = max(found.gradients, found.activations)
    assert found.total == 4 * (trunk + head) + states * trained + passing
    sums = replace(found, accumulates=True)  # one micro-batch makes gradients, and the next comes
    assert sums.total == found.total + min(found.gradients, found.activations)


def test_only_frozen_weights_are_small() -> None:
    model = classifier()
    trunk, head = bert_parameters(BERT)
    HeadOnly().apply(model, RunContext(task="text-classification"))
    half = estimate_memory(model, rows=1, length=1, bytes_per_weight=2)
    assert half.weights == 2 * trunk + 4 * head
    width, inner = BERT.hidden_size, BERT.intermediate_size
    linear = BERT.num_hidden_layers * (4 * width**2 + 2 * width * inner) + width**2
    quantized = estimate_memory(model, rows=1, length=1, bytes_per_weight=0.5)
    assert quantized.weights == linear // 2 + 4 * (trunk - linear + head)


def test_adam_state_is_what_torch_keeps() -> None:
    model = AutoModelForSequenceClassification.from_config(BERT)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [v for s in optimizer.state.values() for v in s.values() if v.dim() > 0]
    kept = sum(moment.nbytes for moment in moments)
    assert estimate_memory(model, rows=1, length=1).optimizer == kept


def kept_for_backward(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes that autograd saves up to the logits, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch).logits.sum()
    return sum(storage.nbytes() for storage in storages.values())


def step_batch(config: PreTrainedConfig, lengths: list[int]) -> dict[str, Tensor]:
    here = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, config.vocab_size, here.shape) * here
    return {"input_ids": ids, "attention_mask": here.long()}


def build(config: PreTrainedConfig) -> Any:
    auto = AutoModelForSequenceClassification if config is BERT else AutoModelForCausalLM
    return auto.from_config(config).train()


@pytest.mark.parametrize("config", [BERT, LLAMA, GPT2], ids=["bert", "llama", "gpt2"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_activations_are_what_a_packed_step_keeps(config: Any, adapter: bool) -> None:
    """Counted without numbers, against a real step on rows of several lengths."""
    model = build(config)
    with torch.device("meta"):
        skeleton = build(config)
    if adapter:
        lora = LoraConfig(
            r=8, target_modules="all-linear", lora_dropout=0.1, fan_in_fan_out=config is GPT2
        )
        model, skeleton = get_peft_model(model, lora), get_peft_model(skeleton, lora)
    lengths = [LENGTH, LENGTH - 2, LENGTH - 4, LENGTH - 2]
    with padding_free(model, True):
        measured = kept_for_backward(model, step_batch(config, lengths))
    estimate = estimate_memory(skeleton, rows=4, length=sum(lengths) // 4)
    assert 0.9 < estimate.activations / measured < 1.1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="attends as a CPU does")
def test_dropout_of_attention_keeps_scores_on_a_cpu() -> None:
    config = BertConfig(**{**SIZE, "hidden_size": 32}, attention_probs_dropout_prob=0.1)
    config.problem_type = BERT.problem_type
    model = AutoModelForSequenceClassification.from_config(config).train()
    batch = step_batch(config, [LENGTH, LENGTH - 2, LENGTH - 4, LENGTH - 2])
    with padding_free(model, True):
        measured = kept_for_backward(model, batch)
    without = BertConfig(**{**config.to_dict(), "attention_probs_dropout_prob": 0.0})
    found = [
        estimate_memory(
            AutoModelForSequenceClassification.from_config(one).to("meta"), rows=4, length=62
        ).activations
        for one in (config, without)
    ]
    assert 0.9 < found[0] / measured < 1.1
    assert found[1] < 0.75 * found[0]


def test_eager_attention_keeps_its_scores() -> None:
    config = LlamaConfig(**LLAMA.to_dict())
    config._attn_implementation = "eager"
    model = build(config)
    measured = kept_for_backward(model, step_batch(config, [LENGTH] * ROWS))
    fused = estimate_memory(build(LLAMA).to("meta"), rows=ROWS, length=LENGTH)
    estimate = estimate_memory(build(config).to("meta"), rows=ROWS, length=LENGTH)
    assert 0.9 < estimate.activations / measured < 1.1
    scores = 4 * 4 * ROWS * SIZE["num_attention_heads"] * LENGTH**2
    assert estimate.activations >= fused.activations + scores


def test_a_model_that_needs_numbers_is_estimated_by_its_sizes() -> None:
    config = T5Config(vocab_size=500, d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    assert kept_bytes(model, 2, 8) is None
    found = estimate_memory(model, rows=2, length=8)
    assert found.activations == 4 * 2 * 8 * (8 * 64 + 3 * 4 * 64) * 4


def test_counting_leaves_the_model_as_it_was() -> None:
    model = classifier().eval()
    before = model.config._attn_implementation
    assert kept_bytes(model, 2, 8)
    assert model.config._attn_implementation == before
    assert not model.training


@pytest.mark.parametrize("trained", [False, True])
def test_logits_by_hand(trained: bool) -> None:
    with torch.device("meta"):
        model = build(LLAMA)
    model.get_output_embeddings().weight.requires_grad_(trained)
    of_head = 4 * 4000 * 128 * trained
    few = estimate_memory(model, rows=2, length=10)
    assert few.logits == 4 * 3 * 20 * 4000 + of_head
    many = estimate_memory(model, rows=100, length=100)
    assert many.logits == 4 * 3 * 2**24 + of_head
    whole = estimate_memory(model, rows=100, length=100, cost=PLAIN.with_whole_logits())
    assert whole.logits == 4 * 3 * 10_000 * 4000 + of_head


def test_recomputing_keeps_each_layers_input_and_one_layer() -> None:
    model = classifier()
    whole = estimate_memory(model, rows=ROWS, length=LENGTH)
    found = estimate_memory(model, rows=ROWS, length=LENGTH, recompute=True)
    inputs = 4 * ROWS * LENGTH * BERT.hidden_size * BERT.num_hidden_layers
    assert found.activations == whole.activations // BERT.num_hidden_layers + inputs


def test_activations_grow_with_the_batch() -> None:
    model = classifier()
    one = estimate_memory(model, rows=1, length=LENGTH).activations
    four = estimate_memory(model, rows=4, length=LENGTH).activations
    assert four == pytest.approx(4 * one, rel=0.01)


def test_autocast_halves_a_part_and_keeps_copies_of_weights() -> None:
    """What linear layers multiply by is kept in half precision, too, where it is not so anyway."""
    model = classifier()
    linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    single, mixed = (
        estimate_memory(model, rows=ROWS, length=LENGTH, mixed_precision=mixed).activations
        for mixed in (False, True)
    )
    assert mixed == pytest.approx(0.65 * single + 2 * linear, rel=1e-6)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.classifier.weight.requires_grad_(True)
    known = {"rows": ROWS, "length": LENGTH, "mixed_precision": True}
    halved = estimate_memory(model, bytes_per_weight=2, **known).activations
    whole = estimate_memory(model, bytes_per_weight=4, **known).activations
    assert whole - halved == 2 * (linear - model.classifier.weight.numel())


def test_a_cost_multiplies_what_its_fields_say() -> None:
    """Two passes over twice the rows, other tensors of the batch, and other weights."""
    model, one = classifier(), StepCost(live_passes=1)
    known = {"rows": ROWS, "length": LENGTH}
    plain = estimate_memory(model, cost=one, **known)
    doubled = estimate_memory(model, rows=2 * ROWS, length=LENGTH, cost=one)
    cost = StepCost(live_passes=2, batch_factor=2, extra_bytes=5, other_weights=7)
    found = estimate_memory(model, cost=cost, **known)
    assert found.activations == 2 * doubled.activations + 5
    assert found.weights == plain.weights + 7
    hidden = 4 * ROWS * LENGTH * BERT.hidden_size
    scores = 4 * ROWS * BERT.num_attention_heads * LENGTH**2
    beside = estimate_memory(model, cost=one + StepCost(hidden_copies=3, score_copies=2), **known)
    assert beside.activations == plain.activations + 3 * hidden + 2 * scores
    again = estimate_memory(model, cost=one + StepCost(gradient_copies=1), **known)
    assert again.gradients == 2 * plain.gradients
