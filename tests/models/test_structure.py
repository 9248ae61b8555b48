# SPDX-License-Identifier: Apache-2.0
"""New modules are found as wholes; mean pooling is the mean, whatever the head and the padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    set_seed,
)

from hftune.core.errors import HftuneError
from hftune.models.pooling import masked_mean, pool_by_mean
from hftune.models.structure import new_modules

SIZE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "num_labels": 3,
}
ENCODERS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZE),
    "roberta": RobertaConfig(**SIZE),
    "distilbert": DistilBertConfig(
        vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3
    ),
    "albert": AlbertConfig(**SIZE, embedding_size=12),
    "electra": ElectraConfig(**SIZE, embedding_size=12),
    "deberta-v2": DebertaV2Config(
        **SIZE, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"]
    ),
    "mpnet": MPNetConfig(**SIZE),
}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model whose logits differ visibly."""
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(length: int = 9) -> dict[str, Tensor]:
    """Three rows of 5, 7 and 9 tokens, padded on the right."""
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(length)[None] < torch.tensor([5, 7, 9])[:, None]
    padded = torch.zeros(3, length, dtype=torch.long)
    padded[:, :9] = ids
    return {"input_ids": padded * mask, "attention_mask": mask.long()}


def last_hidden(model: PreTrainedModel) -> Tensor:
    """Last hidden states of the encoder, before any hook is on it."""
    with torch.no_grad():
        return model.base_model(**batch())[0]


def naive_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    rows = [
        sum(hidden[b, t] for t in range(mask.shape[1]) if mask[b, t]) / int(mask[b].sum())
        for b in range(len(mask))
    ]
    return torch.stack(rows)


def bert_head(model: Any, mean: Tensor) -> Tensor:
    return model.classifier(torch.tanh(model.bert.pooler.dense(mean)))


def roberta_head(model: Any, mean: Tensor) -> Tensor:
    return model.classifier.out_proj(torch.tanh(model.classifier.dense(mean)))


def distilbert_head(model: Any, mean: Tensor) -> Tensor:
    return model.classifier(torch.relu(model.pre_classifier(mean)))


def albert_head(model: Any, mean: Tensor) -> Tensor:
    return model.classifier(torch.tanh(model.albert.pooler(mean)))


def electra_head(model: Any, mean: Tensor) -> Tensor:
    return model.classifier.out_proj(nn.functional.gelu(model.classifier.dense(mean)))


def deberta_head(model: Any, mean: Tensor) -> Tensor:
    return model.classifier(nn.functional.gelu(model.pooler.dense(mean)))


HEADS = {
    "bert": bert_head,
    "roberta": roberta_head,
    "distilbert": distilbert_head,
    "albert": albert_head,
    "electra": electra_head,
    "deberta-v2": deberta_head,
    "mpnet": roberta_head,
}


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_mean_pooling_is_the_head_on_the_naive_mean(name: str) -> None:
    model = build(ENCODERS[name])
    plain = model(**batch()).logits
    expected = HEADS[name](model, naive_mean(last_hidden(model), batch()["attention_mask"]))
    pool_by_mean(model)
    pooled = model(**batch()).logits
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(model(**batch(), return_dict=False)[0], expected)
    assert (pooled - plain).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_nothing(name: str) -> None:
    model = build(ENCODERS[name])
    pool_by_mean(model)
    torch.testing.assert_close(model(**batch(9)).logits, model(**batch(16)).logits)


@torch.no_grad()
def test_mask_by_position_and_no_mask() -> None:
    model = build(ENCODERS["bert"])
    ids, mask = batch().values()
    expected = naive_mean(last_hidden(model), mask)
    pool_by_mean(model)
    torch.testing.assert_close(model.base_model(ids, mask)[0][:, 0], expected)
    torch.testing.assert_close(model.base_model(ids[2:])[0][:, 0], expected[2:])


def test_gradient_reaches_every_token() -> None:
    model = build(ENCODERS["bert"])
    pool_by_mean(model)
    embeddings = model.get_input_embeddings()(batch()["input_ids"]).detach().requires_grad_()
    mask = batch()["attention_mask"]
    model(inputs_embeds=embeddings, attention_mask=mask).logits.sum().backward()
    reached = embeddings.grad.abs().sum(-1) > 0
    assert torch.equal(reached, mask.bool())


@torch.no_grad()
def test_modernbert_pools_by_its_own_field() -> None:
    size = {**SIZE, "local_attention": 8, "classifier_pooling": "cls"}
    special = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    model = build(ModernBertConfig(**size, **special))
    mean = naive_mean(last_hidden(model), batch()["attention_mask"])
    pool_by_mean(model)
    assert model.config.classifier_pooling == "mean"
    torch.testing.assert_close(model(**batch()).logits, model.classifier(model.head(mean)))
    torch.testing.assert_close(model(**batch(9)).logits, model(**batch(16)).logits)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZE, num_key_value_heads=2),
        GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=3),
        OPTConfig(**{**SIZE, "ffn_dim": 24}, word_embed_proj_dim=16),
        BartConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, num_labels=3,
            encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
        ),
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_what_is_no_encoder_is_refused(config: PreTrainedConfig) -> None:
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(HftuneError, match=f"mean is made for encoders, and {type(model).__name__}"):
        pool_by_mean(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_mean(dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 9, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = batch()["attention_mask"]
    torch.testing.assert_close(masked_mean(hidden, mask), naive_mean(hidden, mask))
    torch.testing.assert_close(masked_mean(hidden, mask.bool()), naive_mean(hidden, mask))
    ones = torch.ones(3, 9)
    torch.testing.assert_close(masked_mean(hidden, None), naive_mean(hidden, ones))


def test_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(torch.ones(1, 2, 3), torch.zeros(1, 2)).tolist() == [[0.0, 0.0, 0.0]]


def test_pooler_and_classifier_missing(tiny_encoder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=3)
    keys = model.state_dict().keys()
    missing = [key for key in keys if key.startswith(("bert.pooler.", "classifier."))]
    assert len(missing) == 4
    assert new_modules(model, missing) == ("bert.pooler", "classifier")


def test_missing_keys_as_from_pretrained_reports_them(tiny_encoder: Path) -> None:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        tiny_encoder, num_labels=3, output_loading_info=True
    )
    assert new_modules(model, report["missing_keys"]) == ("classifier",)


def test_nested_head_is_one_module() -> None:
    model = RobertaForSequenceClassification(ENCODERS["roberta"])
    missing = [key for key in model.state_dict() if key.startswith("classifier.")]
    assert len(missing) == 4
    assert new_modules(model, missing) == ("classifier",)


def test_partly_missing_head_is_its_missing_part() -> None:
    model = RobertaForSequenceClassification(ENCODERS["roberta"])
    missing = ["classifier.out_proj.weight", "classifier.out_proj.bias"]
    assert new_modules(model, missing) == ("classifier.out_proj",)


def test_a_missing_bias_stands_for_its_module() -> None:
    model = BertForSequenceClassification(ENCODERS["bert"])
    key = "bert.encoder.layer.1.output.dense.bias"
    assert new_modules(model, [key]) == (key.removesuffix(".bias"),)


def test_nothing_missing() -> None:
    assert new_modules(BertForSequenceClassification(ENCODERS["bert"]), []) == ()
