# SPDX-License-Identifier: Apache-2.0
"""Layers, embeddings and heads are found in every kind of architecture; patterns as in PEFT."""

import warnings
from typing import Any

import pytest
from accelerate import init_empty_weights
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from hftune import HftuneError
from hftune.models.module_names import all_names, check_pattern, is_named, layer_names, places

CLASSIFIER, CAUSAL = AutoModelForSequenceClassification, AutoModelForCausalLM
SEQ2SEQ = AutoModelForSeq2SeqLM


def bare(auto: Any, kind: str, **fields: Any) -> Any:
    """A model of an architecture without weights, as its config has it by default."""
    with init_empty_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto.from_config(AutoConfig.for_model(kind, **fields))
    model.tie_weights()
    return model


@pytest.mark.parametrize(
    ("auto", "kind", "first", "last"),
    [
        (CLASSIFIER, "bert", "bert.encoder.layer.0", "bert.encoder.layer.11"),
        (CLASSIFIER, "electra", "electra.encoder.layer.0", "electra.encoder.layer.11"),
        (CLASSIFIER, "deberta-v2", "deberta.encoder.layer.0", "deberta.encoder.layer.23"),
        (CLASSIFIER, "mpnet", "mpnet.encoder.layer.0", "mpnet.encoder.layer.11"),
        (CLASSIFIER, "modernbert", "model.layers.0", "model.layers.21"),
        (CLASSIFIER, "xlnet", "transformer.layer.0", "transformer.layer.23"),
        (CAUSAL, "gpt2", "transformer.h.0", "transformer.h.11"),
        (CAUSAL, "opt", "model.decoder.layers.0", "model.decoder.layers.11"),
        (CAUSAL, "qwen3", "model.layers.0", "model.layers.31"),
        (CAUSAL, "mamba", "backbone.layers.0", "backbone.layers.31"),
        (SEQ2SEQ, "t5", "encoder.block.0", "decoder.block.5"),
        (SEQ2SEQ, "bart", "model.encoder.layers.0", "model.decoder.layers.11"),
    ],
)  # fmt: skip
def test_layers_from_the_bottom_to_the_top(auto: Any, kind: str, first: str, last: str) -> None:
    model = bare(auto, kind)
    names = layer_names(model)
    assert (names[0], names[-1]) == (first, last)
    depth = int(last.rpartition(".")[2]) + 1
    assert len(names) == depth * (2 if auto is SEQ2SEQ else 1)
    where = places(model, names)
    assert {place for place in where.values() if isinstance(place, int)} == set(range(len(names)))
    big = [p for p in model.parameters() if p.dim() == 2 and len(p) == model.config.vocab_size]
    tables = {n for n, p in model.named_parameters() if any(p is table for table in big)}
    assert tables
    tied = model.config.tie_word_embeddings or auto is CLASSIFIER
    assert {where[name] for name in tables} == ({"embeddings"} if tied else {"embeddings", "head"})


@pytest.mark.parametrize("kind", ["albert", "xlm"])
def test_layers_that_cannot_be_counted(kind: str) -> None:
    """ALBERT's twelve share one set of weights, XLM keeps the parts of its layers in four lists."""
    with pytest.raises(HftuneError, match="no plain stack of layers"):
        layer_names(bare(CLASSIFIER, kind))


def test_places_of_an_encoder() -> None:
    model = bare(CLASSIFIER, "bert", num_hidden_layers=2)
    where = places(model, layer_names(model))
    assert where["bert.embeddings.LayerNorm.weight"] == "embeddings"
    assert where["bert.embeddings.position_embeddings.weight"] == "embeddings"
    assert where["bert.encoder.layer.1.output.dense.bias"] == 1
    assert where["bert.pooler.dense.weight"] == "other"
    assert {name for name, place in where.items() if place == "head"} == {
        "classifier.weight", "classifier.bias"
    }  # fmt: skip


def test_a_shared_head_belongs_to_the_embeddings() -> None:
    tied = bare(CAUSAL, "llama", num_hidden_layers=2, tie_word_embeddings=True)
    assert ["model.embed_tokens.weight", "lm_head.weight"] in all_names(tied)
    assert "head" not in places(tied, layer_names(tied)).values()
    apart = bare(CAUSAL, "llama", num_hidden_layers=2, tie_word_embeddings=False)
    assert places(apart, layer_names(apart))["lm_head.weight"] == "head"


def test_a_model_without_a_trunk_of_its_own() -> None:
    """T5 keeps encoder and decoder beside its head, which it shares with the embeddings."""
    model = bare(SEQ2SEQ, "t5")
    assert "head" not in places(model, layer_names(model)).values()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    where = places(model, layer_names(model))
    assert {name for name, place in where.items() if place == "head"} == {"lm_head.weight"}
    assert where["decoder.final_layer_norm.weight"] == "other"
    assert where["shared.weight"] == "embeddings"


@pytest.mark.parametrize(
    "pattern",
    ["bert.encoder.layer.1", r".*\.(query|key)", "query", ["query"], ["layer.1", "pooler"], ["q"]],
)  # fmt: skip
def test_patterns_mean_what_they_mean_in_peft(pattern: str | list[str]) -> None:
    model = bare(CLASSIFIER, "bert", num_hidden_layers=2)
    config = LoraConfig(target_modules=pattern)
    modules = [
        name for name, _ in model.named_modules() if check_target_module_exists(config, name)
    ]
    meant = {
        n for n, _ in model.named_parameters() if n.startswith(tuple(f"{m}." for m in modules))
    }
    assert {n for n, _ in model.named_parameters() if is_named(n, pattern)} == meant


def test_a_pattern_may_mean_a_parameter_itself() -> None:
    assert is_named("a.b.bias", r".*\.bias")
    assert is_named("a.b.bias", ["b.bias"])
    assert not is_named("a.b.bias", "bias")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("weigth", "'weigth' fits nothing in Linear"),
        (["bias", "weigth"], "'weigth' fits nothing in Linear"),
        ("weight(", "is no regular expression"),
    ],
)
def test_a_pattern_without_use(pattern: str | list[str], message: str) -> None:
    with pytest.raises(HftuneError, match=message) as raised:
        check_pattern("method.freeze_modules", pattern, nn.Linear(2, 2))
    if "fits nothing" in message:
        assert "bias, weight" in str(raised.value.hint)
