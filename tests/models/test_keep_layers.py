# SPDX-License-Identifier: Apache-2.0
"""A model of some of another's layers: bit by bit, of several architectures, and loaded plainly."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from hftune.core.errors import HftuneError
from hftune.models.keep_layers import check_kept, shallow_config, with_layers

SIZES = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
CONFIGS: dict[str, tuple[type, PreTrainedConfig, str]] = {
    "llama": (
        AutoModelForCausalLM,
        LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=5,
                    num_attention_heads=2, **SIZES),
        "model.layers",
    ),
    "qwen3": (
        AutoModelForCausalLM,
        Qwen3Config(hidden_size=16, intermediate_size=24, num_hidden_layers=5, head_dim=8,
                    num_attention_heads=2, num_key_value_heads=2, use_sliding_window=True,
                    max_window_layers=2, tie_word_embeddings=True, **SIZES),
        "model.layers",
    ),
    "gpt2": (
        AutoModelForCausalLM,
        GPT2Config(n_embd=16, n_layer=5, n_head=2, **SIZES),
        "transformer.h",
    ),
    "distilbert": (
        AutoModelForSequenceClassification,
        DistilBertConfig(dim=16, n_layers=5, n_heads=2, hidden_dim=24, vocab_size=40),
        "distilbert.transformer.layer",
    ),
}  # fmt: skip
KEPT = [0, 2, 4]


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_keep_their_weights_and_load_plainly(name: str, tmp_path: Path) -> None:
    auto, config, stack = CONFIGS[name]
    torch.manual_seed(0)
    whole = auto.from_config(config).eval()
    shallow_by_config = shallow_config(config, KEPT)
    check_kept(whole, auto.from_config(shallow_by_config), KEPT)
    student = with_layers(whole, shallow_by_config, KEPT)
    assert student.config.num_hidden_layers == 3
    assert config.num_hidden_layers == 5
    theirs, mine = whole.get_submodule(stack), student.get_submodule(stack)
    assert len(mine) == 3
    for index, layer in enumerate(KEPT):
        for key, weight in theirs[layer].state_dict().items():
            assert torch.equal(mine[index].state_dict()[key], weight), key
    others = {k: v for k, v in whole.state_dict().items() if not k.startswith(stack)}
    assert all(torch.equal(student.state_dict()[key], value) for key, value in others.items())

    ids = torch.arange(12).view(2, 6) % 40
    with torch.no_grad():
        # The whole model without its other layers computes the same.
        student.save_pretrained(tmp_path)
        plain = auto.from_pretrained(tmp_path).eval()
        said = student.eval()(input_ids=ids).logits
        torch.testing.assert_close(plain(input_ids=ids).logits, said)
        if name != "distilbert":
            written = [
                model.generate(ids[:, :3], max_new_tokens=4, do_sample=False, min_new_tokens=4)
                for model in (student, plain)
            ]  # with a cache, whose layers are numbered
            assert torch.equal(*written)
        for module in [m for m in theirs if m not in [theirs[layer] for layer in KEPT]]:
            module.forward = _through
        torch.testing.assert_close(whole(input_ids=ids, **_no_cache(name)).logits, said)


def _through(hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    """A layer that does nothing."""
    return hidden


def _no_cache(name: str) -> dict[str, bool]:
    return {} if name == "distilbert" else {"use_cache": False}


def test_layers_that_do_not_fit_are_refused() -> None:
    """The first layer of ModernBERT has no norm before its attention."""
    config = ModernBertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        vocab_size=40, pad_token_id=0, eos_token_id=1, bos_token_id=1, cls_token_id=1,
        sep_token_id=2,
    )  # fmt: skip
    auto = AutoModelForSequenceClassification
    whole = auto.from_config(config)
    for kept in ([0, 2], [0, 3]):
        check_kept(whole, auto.from_config(shallow_config(config, kept)), kept)
    with pytest.raises(HftuneError, match=r"cannot be made of these layers: .*attn_norm"):
        check_kept(whole, auto.from_config(shallow_config(config, [1, 2])), [1, 2])


def test_what_has_no_such_layers_is_refused() -> None:
    from transformers import AlbertConfig, T5Config

    with pytest.raises(HftuneError, match="no layer 5: the model's go from 0 to 4"):
        shallow_config(CONFIGS["llama"][1], [0, 5])
    with pytest.raises(HftuneError, match="t5 has no single stack"):
        shallow_config(T5Config(), [0])
    albert = AlbertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=4,
                          intermediate_size=24, vocab_size=40)  # fmt: skip
    whole = AutoModelForSequenceClassification.from_config(albert)
    with pytest.raises(HftuneError, match="no list of 4 layers"):
        check_kept(whole, whole, [0, 1])
