# SPDX-License-Identifier: Apache-2.0
"""Where adapters go, architecture by architecture."""

import re
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from hftune.methods.bottleneck import BottleneckConfig
from hftune.methods.bottleneck.sites import POST_NORMS, find_sites, partner
from tests.methods.tiny_models import WORDS, build

LAYERS = 2
#: Fields that make a model of any type small; a type takes those that its config knows.
SMALL = {
    "vocab_size": WORDS, "pad_token_id": 0, "hidden_size": 16, "d_model": 16, "n_embd": 16,
    "dim": 16, "embedding_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": LAYERS,
    "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS, "encoder_layers": LAYERS,
    "decoder_layers": LAYERS, "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 8, "d_kv": 8, "intermediate_size": 32, "hidden_dim": 32, "d_ff": 32, "ffn_dim": 32,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "image_size": 32,
    "patch_size": 8, "attention_types": [[["global", "local"], 1]], "attention_window": 4,
    "rotary_dim": 4,
}  # fmt: skip
#: Model type -> adapters of Houlsby's, and of Pfeiffer's and the parallel placement.
BLOCKS = (2 * LAYERS, LAYERS)
TWO_STACKS = (5 * LAYERS, 2 * LAYERS)  # the decoder attends twice
ONE_SHARED = (2, 1)
COUNTS = {
    **dict.fromkeys(
        ("beit", "bert", "big_bird", "biogpt", "bloom", "camembert", "cohere", "deberta",
         "deberta-v2", "deit", "dinov2", "distilbert", "electra", "ernie", "esm", "falcon",
         "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite",
         "hubert", "layoutlm", "llama", "longformer", "mistral", "mixtral", "modernbert", "mpnet",
         "mpt", "nomic_bert", "olmo2", "openai-gpt", "opt", "phi", "phi3", "qwen2", "qwen2_moe",
         "qwen3", "roberta", "roformer", "smollm3", "stablelm", "starcoder2", "vit", "wav2vec2",
         "xglm", "xlm-roberta"),
        BLOCKS,
    ),
    **dict.fromkeys(
        ("bart", "blenderbot", "blenderbot-small", "led", "m2m_100", "marian", "mbart", "mt5",
         "mvp", "pegasus", "t5"),
        TWO_STACKS,
    ),
    "albert": ONE_SHARED,
}  # fmt: skip


def tiny(model_type: str) -> Any:
    """A model of a type, two layers deep, without weights."""
    config = AutoConfig.for_model(model_type)
    known = config.to_dict().keys() | config.attribute_map.keys()
    config = AutoConfig.for_model(model_type, **{k: v for k, v in SMALL.items() if k in known})
    with torch.device("meta"):
        return AutoModel.from_config(config)


@pytest.mark.parametrize("model_type", sorted(COUNTS))
def test_every_sublayer_of_a_known_architecture_has_an_adapter(model_type: str) -> None:
    sequential, once = COUNTS[model_type]
    model = tiny(model_type)
    modules = dict(model.named_modules())
    for placement, count in (("houlsby", sequential), ("pfeiffer", once), ("parallel", once)):
        sites = find_sites(model, placement, model.config.to_dict())
        targets = [name for name in modules if re.fullmatch(sites.target_modules, name)]
        assert len(targets) == count, (placement, targets)
        for name in targets:  # each returns as much as the model is wide
            weights = dict(modules[name].named_parameters(recurse=False))
            # A linear layer has its outputs first, GPT-2's last; a mixture has no weight itself.
            dimension = -1 if isinstance(modules[name], Conv1D) else 0
            assert not weights or weights["weight"].shape[dimension] == 16, name
        if sites.input_modules is not None:
            first = [name for name in modules if re.fullmatch(sites.input_modules, name)]
            read = {partner(name, first) for name in targets}
            assert len(read) == count
            widths = {
                m.nx if isinstance(m := modules[name], Conv1D) else m.in_features for name in read
            }
            assert widths == {16}


def test_both_towers_of_clip_are_found() -> None:
    tower = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers",
             "num_attention_heads", "intermediate_size", "image_size", "patch_size")}  # fmt: skip
    config = AutoConfig.for_model("clip", text_config=tower, vision_config=tower)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    names = get_peft_model(model, BottleneckConfig(placement="houlsby")).base_model
    assert len(names.targeted_module_names) == 2 * 2 * LAYERS


def test_every_post_norm_is_among_the_architectures_tried() -> None:
    assert set(POST_NORMS) <= set(COUNTS)


def tiny_with_weights(model_type: str) -> Any:
    torch.manual_seed(0)
    model = tiny(model_type).to_empty(device="cpu").eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.1)
        elif "position" in name:
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
        else:
            tensor.zero_()
    return model


POST_NORM_TRIED = sorted(set(COUNTS) - {"beit", "deit", "dinov2", "vit", "hubert", "wav2vec2"})


@pytest.mark.parametrize("model_type", POST_NORM_TRIED)
def test_what_the_table_calls_a_post_norm_ends_the_block(model_type: str) -> None:
    """The output of a post-norm is the block's output; in any other architecture no norm's is."""
    model = tiny_with_weights(model_type)
    norms: dict[str, torch.Tensor] = {}
    blocks: dict[str, torch.Tensor] = {}

    def keep(place: dict[str, torch.Tensor], name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            place[name] = output[0] if isinstance(output, tuple | list) else output

        return hook

    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            module.register_forward_hook(keep(norms, name))
        elif (
            re.fullmatch(r"(.*\.)?(layers?|h|block|albert_layers)\.\d+", name)
            and ".layer." not in f".{name[:-8]}."
        ):
            module.register_forward_hook(keep(blocks, name))
    ids = torch.randint(3, WORDS, (1, 8))
    second = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(input_ids=ids, **second)
    ends = {
        norm
        for norm, normed in norms.items()
        for block, output in blocks.items()
        if norm.startswith(f"{block}.")
        and normed.shape == output.shape
        and torch.equal(normed, output)
    }
    pattern = POST_NORMS.get(model_type, "(?!)")
    named = {norm for norm in norms if re.fullmatch(rf"(.*\.)?\d+\.{pattern}", norm)}
    assert ends == named


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_an_unknown_architecture_says_what_was_looked_for_and_what_is_there(placement: str) -> None:
    with pytest.raises(ValueError, match=r"looked for .*ffn.lin2|looked for .*attn.c_proj") as info:
        get_peft_model(build("convnext"), BottleneckConfig(placement=placement))
    assert "ConvNextForImageClassification has " in str(info.value)
    assert "layers.pwconv1, layers.pwconv2: name" in str(info.value)
    assert "target_modules" in str(info.value)


def test_a_wrong_name_says_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"has nothing named down_projection; .*mlp\.down_proj"):
        get_peft_model(build("llama"), BottleneckConfig(target_modules=["down_projection"]))
    config = BottleneckConfig(target_modules=["down_proj"], layers_to_transform=[7])
    with pytest.raises(ValueError, match=r"nothing named down_proj in layers \[7\]"):
        get_peft_model(build("llama"), config)


@pytest.mark.parametrize("names", [["pwconv2"], r".*layers\.\d+\.pwconv2"])
def test_any_other_model_takes_names_and_patterns(names: Any) -> None:
    model = get_peft_model(build("convnext"), BottleneckConfig(target_modules=names, r=2))
    layers = [name for name, _ in model.named_modules() if name.endswith("pwconv2")]
    assert len(layers) == 2
    assert [model.get_submodule(f"{name}.bottleneck_up.default").out_features for name in layers] \
        == [8, 16]  # fmt: skip


def test_what_has_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match="is a Conv2d; an adapter goes onto a linear layer"):
        get_peft_model(build("convnext"), BottleneckConfig(target_modules=["dwconv"], r=2))


def test_a_plain_module_without_config() -> None:
    base = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = get_peft_model(base, BottleneckConfig(target_modules=["0", "2"], reduction_factor=3))
    down = [p.shape for n, p in model.named_parameters() if "down" in n and p.dim() == 2]
    assert down == [(2, 6), (1, 3)]
    with pytest.raises(ValueError, match="leaves nothing of a width of 3"):
        get_peft_model(nn.Sequential(nn.Linear(4, 3)), BottleneckConfig(target_modules=["0"]))


@pytest.mark.parametrize("pattern", [None, "layers"])
@pytest.mark.parametrize("target", [None, ["self_attn.o_proj", "mlp.down_proj"]])
def test_layers_to_transform(target: Any, pattern: str | None) -> None:
    config = BottleneckConfig(
        placement="houlsby", target_modules=target, layers_to_transform=1, layers_pattern=pattern
    )
    names = get_peft_model(build("llama"), config).base_model.targeted_module_names
    assert names == ["model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"]


def test_exclude_modules() -> None:
    config = BottleneckConfig(placement="houlsby", exclude_modules=["o_proj"])
    names = get_peft_model(build("llama"), config).base_model.targeted_module_names
    assert names == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def test_sites_are_the_same_with_adapters_already_there() -> None:
    base = build("bart")
    before = find_sites(base, "houlsby", base.config.to_dict())
    model = get_peft_model(base, BottleneckConfig(placement="parallel"))
    assert find_sites(model.base_model.model, "houlsby", base.config.to_dict()) == before


def test_partner_wants_one_module() -> None:
    with pytest.raises(ValueError, match="2 modules"):
        partner("layers.1.mlp.down", ["layers.1.mlp.up", "layers.1.mlp.gate"])
    with pytest.raises(ValueError, match="no module"):
        partner("layers.1.mlp.down", ["other.up"])
