# SPDX-License-Identifier: Apache-2.0
"""Attention is what an independent eager model gives, and the model is left as it was."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hftune import HftuneError, RunError
from hftune.interpret.attention import (
    AttentionMap,
    attention_maps,
    eager_attention,
    remarks,
    sharpest_head,
)
from hftune.tasks.token_texts import Token, encode_prompt, encode_text

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
IDS = torch.tensor([[7, 8, 9, 10, 11, 7, 8]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
TOKENS = [Token(text=str(i), id=i) for i in IDS[0].tolist()]


def random_model(config: str, auto: Any = AutoModelForCausalLM, **fields: Any) -> Any:
    transformers.set_seed(0)
    return auto.from_config(getattr(transformers, config)(**fields)).eval()


def llama(**fields: Any) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    return random_model("LlamaConfig", **{**SMALL, **heads, **fields})


def eager_reference(path: Path, auto: Any, inputs: Any) -> np.ndarray:
    """Attention of a model loaded on its own, eager from the start."""
    model = auto.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        layers = model(**inputs, output_attentions=True).attentions
    return np.stack([layer[0].numpy() for layer in layers])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_equals_an_independent_eager_model(
    kind: str, tiny_encoder: Path, tiny_decoder: Path
) -> None:
    if kind == "encoder":
        path, auto = tiny_encoder, AutoModelForSequenceClassification
        encoded = encode_text(AutoTokenizer.from_pretrained(path), "red one two", "blue")
    else:
        path, auto = tiny_decoder, AutoModelForCausalLM
        encoded = encode_prompt(AutoTokenizer.from_pretrained(path), "some prompt")
    model = auto.from_pretrained(path, attn_implementation="sdpa")
    (found,), outputs = attention_maps(model, encoded.inputs, encoded.tokens)
    reference = eager_reference(path, auto, encoded.inputs)
    np.testing.assert_allclose(found.weights, reference, atol=1e-6)
    T = len(encoded.tokens)
    assert found.weights.shape == (2, 2, T, T)
    assert found.weights.dtype == np.float32
    assert found.queries == found.keys == encoded.tokens
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-5)
    assert found.causal == (kind == "decoder")
    if kind == "decoder":
        above = np.triu_indices(T, k=1)
        assert not found.weights[:, :, above[0], above[1]].any()
    assert outputs.logits.shape[0] == 1


def test_equals_the_merged_model_under_lora() -> None:
    adapted = get_peft_model(llama(), LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    (found,), _ = attention_maps(adapted, INPUTS, TOKENS)
    merged = adapted.merge_and_unload().eval()
    merged.set_attn_implementation("eager")
    with torch.no_grad():
        layers = merged(**INPUTS, output_attentions=True).attentions
    np.testing.assert_allclose(found.weights, torch.cat(list(layers)).numpy(), atol=1e-5)
    assert found.weights.shape == (2, 4, 7, 7)  # a map for each query head, grouped or not


def test_a_sliding_window_is_seen() -> None:
    model = random_model(
        "MistralConfig", **SMALL, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, sliding_window=3,
    )  # fmt: skip
    (found,), _ = attention_maps(model, INPUTS, TOKENS)
    behind = np.tril_indices(7, k=-3)
    assert not found.weights[:, :, behind[0], behind[1]].any()
    assert found.weights[:, :, 6, 4].all()


@pytest.fixture
def registered() -> Iterator[str]:
    """An attention of one's own, as a run may have trained with."""
    name = "test_attention_of_our_own"
    ALL_ATTENTION_FUNCTIONS.register(name, sdpa_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield name
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        type(table)._global_mapping.pop(name)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_models_own_way_comes_back(adapted: bool, registered: str) -> None:
    for before in ("sdpa", "eager", registered):
        model = llama()
        model.set_attn_implementation(before)
        plain = model
        if adapted:
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
        model.train()
        with eager_attention(model):
            assert plain.config._attn_implementation == "eager"
        assert plain.config._attn_implementation == before
        with pytest.raises(RuntimeError, match="out of memory"), eager_attention(model):
            raise RuntimeError("out of memory")
        assert plain.config._attn_implementation == before
        attention_maps(model, INPUTS, TOKENS)
        assert plain.config._attn_implementation == before
        assert model.training
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            attention_maps(model, {**INPUTS, "input_ids": None}, TOKENS)
        assert plain.config._attn_implementation == before
        assert model.training


def test_parts_of_a_model_get_their_own_way_back() -> None:
    """A model of models: each part's config says how it attends."""
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32}  # fmt: skip
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, **part),
        vision_config=transformers.CLIPVisionConfig(image_size=8, patch_size=4, **part),
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    parts = (model.config, model.config.text_config, model.config.vision_config)
    before = [part._attn_implementation for part in parts]
    assert len(set(before)) == 2
    with eager_attention(model):
        assert {part._attn_implementation for part in parts} == {"eager"}
    assert [part._attn_implementation for part in parts] == before


@pytest.mark.parametrize("kind", ["prompt", "p"])
def test_virtual_tokens_in_the_input_attend_and_are_attended_to(kind: str) -> None:
    """Against the base model given the same embeddings by hand."""
    configs = {
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "p": PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16
        ),
    }
    model = get_peft_model(llama(), configs[kind])
    (found,), _ = attention_maps(model, INPUTS, TOKENS)
    assert [token.text for token in found.keys[:4]] == [
        "<virtual 0>", "<virtual 1>", "<virtual 2>", "7",
    ]  # fmt: skip
    assert found.queries == found.keys
    base = llama()
    base.set_attn_implementation("eager")
    with torch.no_grad():
        prompt = model.get_prompt(batch_size=1)
        embeds = torch.cat([prompt, base.get_input_embeddings()(IDS)], dim=1)
        layers = base(inputs_embeds=embeds, output_attentions=True).attentions
    np.testing.assert_allclose(found.weights, torch.cat(list(layers)).numpy(), atol=1e-6)


def test_virtual_tokens_of_prefix_tuning_are_columns_only() -> None:
    """Layer 0 against softmax(q k / sqrt(d)) from the projections that a hook saw."""
    base = random_model(
        "GPT2Config", vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = get_peft_model(
        base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    seen = []
    base.transformer.h[0].attn.c_attn.register_forward_hook(lambda m, i, out: seen.append(out))
    (found,), _ = attention_maps(model, INPUTS, TOKENS)
    assert found.weights.shape == (2, 4, 7, 10)
    assert found.queries == TOKENS
    assert [token.segment for token in found.keys] == ["virtual"] * 3 + ["text"] * 7
    assert found.causal
    with torch.no_grad():
        q, k, _ = seen[0].split(32, dim=-1)
        q, k = (part.view(1, 7, 4, 8).transpose(1, 2) for part in (q, k))
        prefix = model.get_prompt(batch_size=1).layers[0].keys
        scores = q @ torch.cat([prefix, k], dim=2).transpose(2, 3) / 8**0.5
        later = torch.ones(7, 10).triu(4).bool()
        expected = scores.masked_fill(later, -torch.inf).softmax(-1)
    np.testing.assert_allclose(found.weights[0], expected[0].numpy(), atol=1e-6)


def test_an_encoder_decoder_has_three_kinds() -> None:
    model = random_model(
        "T5Config", transformers.AutoModelForSeq2SeqLM, vocab_size=50, d_model=32, d_kv=8,
        num_layers=2, num_heads=4, d_ff=64, decoder_start_token_id=0,
    )  # fmt: skip
    inputs = {**INPUTS, "decoder_input_ids": IDS[:, :4]}
    maps, _ = attention_maps(model, inputs, TOKENS, TOKENS[:4])
    assert [one.kind for one in maps] == ["encoder", "decoder", "cross"]
    assert [one.weights.shape[-2:] for one in maps] == [(7, 7), (4, 4), (4, 7)]
    assert [one.causal for one in maps] == [False, True, False]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    for one in maps:
        layers = torch.cat(list(outputs[f"{one.kind}_attentions"]))
        np.testing.assert_allclose(one.weights, layers.numpy(), atol=1e-6)


def test_a_hybrid_model_names_the_layers_that_attend() -> None:
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    model = random_model(
        "Lfm2Config", vocab_size=50, hidden_size=32, num_hidden_layers=4, layer_types=kinds,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    )  # fmt: skip
    (found,), _ = attention_maps(model, INPUTS, TOKENS)
    assert found.layers == [1, 3]
    assert found.weights.shape == (2, 4, 7, 7)


@pytest.mark.parametrize(
    ("config", "fields", "says"),
    [
        ("MambaConfig", {**SMALL, "state_size": 4}, "MambaForCausalLM has no attention"),
        # What RWKV returns as attentions is the output of its layers.
        ("RwkvConfig", SMALL, r"RwkvForCausalLM has no attention .* shape \(1, 7, 32\)"),
        (
            "LongformerConfig",
            {
                **SMALL,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "attention_window": 4,
                "max_position_embeddings": 32,
            },
            "not one weight for each pair",
        ),
    ],
)
def test_a_model_without_attention_says_so(config: str, fields: Any, says: str) -> None:
    auto = transformers.AutoModel if config == "LongformerConfig" else AutoModelForCausalLM
    model = random_model(config, auto, **fields)
    before = model.config._attn_implementation
    with pytest.raises(HftuneError, match=says):
        attention_maps(model, INPUTS, TOKENS)
    assert model.config._attn_implementation == before


def test_a_model_that_cannot_be_switched_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda _: False))
    monkeypatch.setattr(
        type(model.model), "_can_set_attn_implementation", classmethod(lambda _: False)
    )
    with pytest.raises(HftuneError, match=r"cannot be switched .* sdpa attention keeps no weights"):
        attention_maps(model, INPUTS, TOKENS)


def test_attention_that_goes_nowhere_is_an_error() -> None:
    """Attention sinks take a share that no token gets."""
    model = random_model(
        "GptOssConfig", **SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=32, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    with pytest.raises(RunError, match="not to 1"):
        attention_maps(model, INPUTS, TOKENS)


def test_adaption_prompt_has_a_remark() -> None:
    from peft import AdaptionPromptConfig

    config = AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config)
    (found,), _ = attention_maps(model, INPUTS, TOKENS)
    assert found.weights.shape == (2, 4, 7, 7)
    assert "only the model's is shown" in remarks(model)[0]
    assert remarks(llama()) == []


def a_map(weights: list[list[float]], special: tuple[int, ...] = ()) -> AttentionMap:
    tokens = [Token(text=str(i), id=i, special=i in special) for i in range(len(weights))]
    array = np.array([[weights]], dtype=np.float32)
    return AttentionMap(kind="self", layers=[4], queries=tokens, keys=tokens, weights=array)


def test_hidden_special_tokens_take_their_share_along() -> None:
    whole = a_map([[0.5, 0.25, 0.25], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], special=(0,))
    left = whole.without_special()
    assert [token.text for token in left.keys] == ["1", "2"]
    np.testing.assert_allclose(left.weights[0, 0], [[0.3, 0.1], [0.2, 0.6]])
    assert whole.weights.shape == (1, 1, 3, 3)
    with pytest.raises(HftuneError, match="all tokens are special"):
        a_map([[1.0]], special=(0,)).without_special()


def test_the_sharpest_head_looks_at_other_tokens() -> None:
    """Not at itself, a special token or the first one."""
    rows = [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.9, 0.1, 0.0, 0.0],
        [0.5, 0.3, 0.0, 0.1, 0.1],
        [0.0, 0.2, 0.7, 0.1, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
    found = sharpest_head(a_map(rows, special=(4,)))
    assert found is not None
    layer, head, share = found
    assert (layer, head) == (4, 0)
    assert share == pytest.approx((0.1 + 0.3 + 0.7) / 3)
    assert sharpest_head(a_map([[1.0, 0.0], [0.5, 0.5]])) is None
