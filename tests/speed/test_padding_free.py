# SPDX-License-Identifier: Apache-2.0
"""Packed rows against padded ones: outputs and gradients of every family, and who cannot."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import varlen

from hftune.core.errors import HftuneError
from hftune.speed import packed_attention
from hftune.speed.padding_free import NAME, padding_free
from tests.speed.families import (
    FAMILIES,
    LENGTHS,
    PADDED,
    SIZES,
    answer,
    layers_of,
    make,
    rows,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # what families say of ids beyond the tiny words


def check_same(model: Any, batch: dict[str, Tensor]) -> None:
    logits, gradients = answer(model, batch)
    seen: list[Any] = []
    hook = layers_of(model)[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with padding_free(model, True) as reason:
        assert reason is None
        packed_logits, packed_gradients = answer(model, batch)
    hook.remove()
    assert seen[-1].shape[:2] == (1, sum(LENGTHS)), "the layers saw padding"
    torch.testing.assert_close(packed_logits, logits, atol=1e-5, rtol=1e-5)
    largest = max(float(one.abs().max()) for one in gradients.values())
    assert gradients.keys() == packed_gradients.keys()
    for name, one in gradients.items():
        torch.testing.assert_close(packed_gradients[name], one, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_give_the_same_answers_and_gradients(name: str) -> None:
    model = make(name, FAMILIES[name])
    check_same(model, rows(model))
    assert model.config._attn_implementation == "sdpa"
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("spare", [0, 10**6], ids=["a call a length", "one call"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_like_length_together_give_the_same(
    name: str, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "way_of", lambda *_: "alike")
    monkeypatch.setattr(packed_attention, "SPARE", spare)
    model = make(name, FAMILIES[name])
    check_same(model, rows(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ways_of_a_gpu_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel stands here in plain words, and in padded places what it does not know."""
    taken: list[str] = []

    def choose(query: Tensor, value: Tensor, dropout: float, packing: Any) -> str:
        taken.append("flash" if packing.window is not None else "padded")
        return taken[-1]

    monkeypatch.setattr(packed_attention, "way_of", choose)
    monkeypatch.setattr(varlen, "varlen_attn", in_plain_words)
    model = make(name, FAMILIES[name])
    check_same(model, rows(model))
    assert set(taken) == {"padded" if name == "Llama4ForCausalLM" else "flash"}
    monkeypatch.setattr(packed_attention, "way_of", lambda *_: "padded")
    check_same(model, rows(model))


def in_plain_words(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor,
    *longest: int, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What the documentation of ``varlen_attn`` says."""
    assert ends.dtype == torch.int32
    assert torch.equal(ends, key_ends)
    assert longest == (max(ends.diff()),) * 2
    left, right = window_size
    rows = []
    for start, end in pairwise(ends.tolist()):
        later = torch.arange(end - start) - torch.arange(end - start)[:, None]
        seen = (later >= -left if left >= 0 else later == later) & (
            later <= right if right >= 0 else later == later
        )
        parts = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        taken = F.scaled_dot_product_attention(*parts, seen, scale=scale, enable_gqa=enable_gqa)
        rows.append(taken[0].transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "GPT2LMHeadModel", "MistralForCausalLM", "Llama4ForCausalLM"]
)
def test_rows_that_are_padded_on_the_left(name: str) -> None:
    model = make(name, FAMILIES[name])
    check_same(model, rows(model, left=True))


def test_an_encoder_padded_on_the_left_is_left_alone() -> None:
    """Its head reads the first place, which packing would leave empty."""
    model = make("BertForSequenceClassification", SIZES)
    batch = rows(model, left=True)
    logits, _ = answer(model, batch)
    with padding_free(model, True):
        assert torch.equal(answer(model, batch)[0], logits)


@pytest.mark.parametrize("name", PADDED)
def test_who_cannot_says_why(name: str) -> None:
    fields, why = PADDED[name]
    model = make(name, fields)
    before = model.config._attn_implementation
    with padding_free(model, None) as reason:
        assert reason is not None
        assert why in reason
        assert model.config._attn_implementation == before
    insisted = padding_free(model, True)
    with pytest.raises(HftuneError, match=rf"data\.padding_free: .*{why}"):
        insisted.__enter__()
    with padding_free(model, False) as reason:
        assert reason is None


@pytest.mark.parametrize("padding", [99, -1, None])
def test_any_id_may_be_that_of_padding(padding: int | None) -> None:
    """GPT-2 pads with its last word; some configs say -1 for none."""
    fields = {**FAMILIES["GPT2LMHeadModel"], "pad_token_id": padding}
    model = make("GPT2ForSequenceClassification" if padding == 99 else "GPT2LMHeadModel", fields)
    with padding_free(model, None) as reason:
        assert reason is None


def test_layers_left_out_by_chance_are_not_packed() -> None:
    model = make("OPTForCausalLM", {**FAMILIES["OPTForCausalLM"], "layerdrop": 0.3})
    with padding_free(model, None) as reason:
        assert "leaves out layers" in str(reason)


def test_a_model_of_images_is_left_alone() -> None:
    fields = {**SIZES, "image_size": 8, "patch_size": 4}
    del fields["vocab_size"], fields["max_position_embeddings"]
    model = make("ViTForImageClassification", fields)
    with padding_free(model, None) as reason:
        assert reason is not None
        assert not any(part._forward_pre_hooks for part in model.modules())


def test_layers_that_mix_rows_are_found_out() -> None:
    """A layer that averages over a batch's places answers otherwise: the trial sees it."""
    model = make("BertForSequenceClassification", SIZES)
    layers_of(model)[0].register_forward_hook(lambda _, args, out: out + out.mean(1, keepdim=True))
    with padding_free(model, None) as reason:
        assert "answers are" in str(reason)
        assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "LlamaForCausalLM"])
def test_with_recomputed_activations_and_an_adapter(name: str) -> None:
    task = "SEQ_CLS" if "Bert" in name else "CAUSAL_LM"
    model = make(name, FAMILIES[name])
    config = LoraConfig(task_type=task, init_lora_weights=False, target_modules="all-linear")
    adapted = get_peft_model(model, config)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for part in adapted.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    adapted.train()
    check_same(adapted, rows(model))


@pytest.mark.parametrize("config", [
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
])  # fmt: skip
def test_virtual_tokens(config: Any) -> None:
    """Prompts are rows like others; prefixes come as past keys, and these passes stay padded."""
    model = get_peft_model(make("LlamaForCausalLM", FAMILIES["LlamaForCausalLM"]), config).eval()
    batch = rows(model)

    def read() -> Tensor:
        with torch.no_grad():
            logits = model(**batch).logits[:, -max(LENGTHS) :]
        return logits[batch["attention_mask"].bool()]

    padded = read()
    with padding_free(model, True):
        torch.testing.assert_close(read(), padded, atol=1e-5, rtol=1e-5)


def test_generation_and_looks_inside_are_as_before() -> None:
    model = make("LlamaForCausalLM", FAMILIES["LlamaForCausalLM"])
    batch = rows(model, left=True)

    def write() -> Tensor:
        found: Tensor = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0)
        return found

    def look() -> tuple[Tensor, ...]:
        with torch.no_grad():
            states: tuple[Tensor, ...] = model(**batch, output_hidden_states=True).hidden_states
        return states

    written, seen = write(), look()
    with padding_free(model, True):
        assert torch.equal(write(), written)
        for one, other in zip(look(), seen, strict=True):
            assert torch.equal(one, other)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = make("BertForSequenceClassification", SIZES)
    context = padding_free(model, True)
    context.__enter__()
    assert model.config._attn_implementation == NAME
    assert NAME not in str(model.config.to_dict())
    error = ZeroDivisionError()
    assert not context.__exit__(type(error), error, None), "the error is held back"
    assert model.config._attn_implementation == "sdpa"


def test_no_random_number_is_used_up() -> None:
    model = make("BertForSequenceClassification", SIZES).train()
    state = torch.get_rng_state()
    with padding_free(model, True):
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training


ON_GPU = ["BertForSequenceClassification", "LlamaForCausalLM", "MistralForCausalLM",
          "ModernBertForSequenceClassification", "Gemma3ForCausalLM"]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_the_kernel_for_rows_of_any_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision all rows go through one call, forward and back, windows included."""
    fields = {**FAMILIES[name], "hidden_size": 128, "intermediate_size": 256}
    fields |= {"head_dim": 32} if "head_dim" in fields else {}
    model = make(name, fields).to("cuda", torch.bfloat16)
    batch = {key: value.cuda() for key, value in rows(model).items()}
    exact, exact_gradients = answer(make(name, fields).cuda(), batch)
    padded, padded_gradients = answer(model, batch)
    calls: list[Any] = []
    one_call = packed_attention.in_one_call
    noted = lambda *given: calls.append(one_call(*given)) or calls[-1]  # noqa: E731
    monkeypatch.setattr(packed_attention, "in_one_call", noted)
    with padding_free(model, True):
        packed, packed_gradients = answer(model, batch)
    assert calls, "the kernel was not taken"
    apart: Callable[[Tensor, Tensor], float] = lambda a, b: float((a - b).norm() / b.norm())  # noqa: E731
    assert apart(packed, exact) < 2 * apart(padded, exact) + 1e-2
    for key, one in exact_gradients.items():
        least = apart(padded_gradients[key], one)
        assert apart(packed_gradients[key], one) < 2 * least + 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_the_kernel_serves_under_autocast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in single precision, as in full fine-tuning, with rotary embeddings or without."""
    fields = {**FAMILIES[name], "hidden_size": 128, "intermediate_size": 256}
    fields |= {"head_dim": 32} if "head_dim" in fields else {}
    model = make(name, fields).cuda()
    batch = {key: value.cuda() for key, value in rows(model).items()}
    ways: list[str] = []
    choose = packed_attention.way_of
    noted = lambda *given: ways.append(choose(*given)) or ways[-1]  # noqa: E731
    monkeypatch.setattr(packed_attention, "way_of", noted)
    with torch.autocast("cuda", torch.bfloat16):
        padded, _ = answer(model, batch)
        with padding_free(model, True):
            packed, _ = answer(model, batch)
    assert set(ways) == {"flash"}
    assert float((packed - padded).norm() / padded.norm()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_padded_places_on_a_gpu(name: str) -> None:
    """In single precision the kernel does not serve."""
    model = make(name, FAMILIES[name]).cuda()
    batch = {key: value.cuda() for key, value in rows(model).items()}
    padded, _ = answer(model, batch)
    with padding_free(model, True):
        packed, _ = answer(model, batch)
    torch.testing.assert_close(packed, padded, atol=1e-3, rtol=1e-3)
