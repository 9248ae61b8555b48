# SPDX-License-Identifier: Apache-2.0
"""One name for what configs call differently, down to the modules that drop."""

from typing import Any

import pytest
import transformers
from torch import nn

from hftune import HftuneError
from hftune.regularization import REGULARIZATIONS
from hftune.regularization.dropout import has_drop_path, set_dropout

SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 8}  # fmt: skip
SEQ2SEQ = {"vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
           "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8,
           "decoder_ffn_dim": 8}  # fmt: skip
#: Family -> fields of its config, whether it has either dropout.
FAMILIES: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "Bert": (SIZES, True, True),
    "ModernBert": ({**SIZES, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
                    "cls_token_id": 2, "sep_token_id": 1}, True, True),
    "DistilBert": ({"vocab_size": 20, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8},
                   True, True),
    "GPT2": ({"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2}, True, True),
    "T5": ({"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
           True, False),
    "Bart": (SEQ2SEQ, True, True),
    "Llama": ({**SIZES, "num_key_value_heads": 2}, False, True),
    "OPT": ({"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "ffn_dim": 8,
             "num_attention_heads": 2, "word_embed_proj_dim": 8}, True, True),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_drop_as_asked(family: str) -> None:
    """A module of nn.Dropout, or a number that a layer hands to its attention function."""
    fields, hidden, attention = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**fields)
    for key, there, wanted in (("dropout", hidden, 0.37), ("attention_dropout", attention, 0.23)):
        if there:
            set_dropout(config, {key: wanted})
        else:
            with pytest.raises(HftuneError, match=f"regularization.{key}: .* no such dropout"):
                set_dropout(config, {key: wanted})
    model = getattr(transformers, f"{family}Model")(config)
    found = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    plain = {value for module in model.modules() for name, value in vars(module).items()
             if "dropout" in name and isinstance(value, float)}  # fmt: skip
    assert (0.37 in found | plain) == hidden
    assert (0.23 in found | plain) == attention


def test_the_error_names_what_there_is() -> None:
    with pytest.raises(HftuneError, match=r"what it has: attention_dropout \(model.config\)"):
        set_dropout(transformers.LlamaConfig(), {"dropout": 0.1})
    with pytest.raises(HftuneError, match="what it has: none"):
        set_dropout(transformers.ResNetConfig(), {"dropout": 0.1})


def test_models_with_a_stochastic_depth_of_their_own() -> None:
    config = transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2])
    assert has_drop_path(config)
    set_dropout(config, {"drop_path": 0.4})
    model = transformers.SwinModel(config)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "SwinDropPath"]
    assert 0.4 in rates
    assert not has_drop_path(transformers.BertConfig())


def test_every_field_is_one_of_transformers() -> None:
    """A field that no config of Transformers has would be of no use."""
    known = set()
    for name in dir(transformers):
        if name.endswith("Config") and name[0].isupper():
            kind = getattr(transformers, name, None)
            if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedConfig):
                known |= set(getattr(kind, "__annotations__", {}))
    assert {name for row in REGULARIZATIONS.values() for name in row.config_fields} <= known
