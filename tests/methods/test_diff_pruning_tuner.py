# SPDX-License-Identifier: Apache-2.0
"""Diff pruning as plain PEFT uses a tuner: saving, loading, merging, several adapters, types."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from hftune.methods.diff_pruning import DiffPruningConfig, DiffPruningModel
from hftune.methods.diff_pruning.layer import DiffPruningLayer

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
IDS = torch.arange(24).view(3, 8) % 20


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(vocab_size=40, max_position_embeddings=16, num_labels=3, **SMALL)
    )


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=16, **SMALL))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    )


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                 decoder_start_token_id=0)
    )  # fmt: skip


def vit() -> nn.Module:
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL))


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], str | None]] = {
    "bert": (bert, {"input_ids": IDS}, "SEQ_CLS"),
    "llama": (llama, {"input_ids": IDS}, "CAUSAL_LM"),
    "gpt2": (gpt2, {"input_ids": IDS}, "CAUSAL_LM"),
    "t5": (t5, {"input_ids": IDS, "decoder_input_ids": IDS}, "SEQ_2_SEQ_LM"),
    "vit": (vit, {"pixel_values": torch.linspace(-1, 1, 384).view(2, 3, 8, 8)}, None),
}


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind][0]().eval()


@torch.no_grad()
def logits(model: nn.Module, kind: str) -> Tensor:
    return model(**MODELS[kind][1]).logits


def adapted(kind: str, **fields: Any) -> PeftModel:
    config = DiffPruningConfig(task_type=MODELS[kind][2], target_sparsity=0.9, **fields)
    return get_peft_model(base(kind), config)


def disturb(model: PeftModel, adapter: str = "default", scale: float = 0.1) -> None:
    """Give every difference values, as training would, and finish."""
    tuner = model.base_model
    torch.manual_seed(hash(adapter) % 97)
    for difference in tuner.differences(adapter):
        difference.delta.data.normal_(0, scale)
    tuner.project(adapter)
    tuner.finish(adapter)


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The base's own parameters by their plain names."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value.detach().clone()
        for name, value in model.named_parameters()
        if "diffp_" not in name and "modules_to_save" not in name
    }


def test_starts_at_the_base_and_trains_only_its_own(kind: str) -> None:
    model = adapted(kind).eval()
    assert torch.equal(logits(model, kind), logits(base(kind), kind))
    before = base_weights(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        loss = model(**MODELS[kind][1]).logits.square().mean() + model.base_model.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(logits(model.eval(), kind), logits(base(kind), kind))
    after = base_weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    moved = [bool(d.delta.any()) for d in model.base_model.differences()]
    assert sum(moved) > 0.8 * len(moved)  # keys' biases, for one, have no gradient


def test_penalty_above_an_allowed_share_pulls_as_hard_on_few_gates_as_on_many() -> None:
    """With equal gates it is ``w log(p / allowed)``, whose slope ``w (1 - p)`` does not fade."""
    model = adapted("bert", structured=False, gate_lr_ratio=1.0)
    tuner = model.base_model
    tuner.allowed_share = 0.005
    for log_alpha in (3.0, -4.0):
        p = torch.sigmoid(torch.tensor(log_alpha))
        for difference in tuner.differences():
            difference.gates.data.fill_(log_alpha)
            difference.gates.grad = None
        penalty = tuner.penalty()
        penalty.backward()
        torch.testing.assert_close(penalty, 30 * (p / 0.005).log())
        slope = sum(difference.gates.grad.sum() for difference in tuner.differences())
        torch.testing.assert_close(slope, 30 * (1 - p))
    for log_alpha in (-6.0, -200.0):  # below what is allowed, and so far that no share is left
        for difference in tuner.differences():
            difference.gates.data.fill_(log_alpha)
            difference.gates.grad = None
        penalty = tuner.penalty()
        penalty.backward()
        assert penalty == 0
        assert not any(difference.gates.grad.any() for difference in tuner.differences())


@pytest.mark.parametrize("mode", ["l0", "l1"])
def test_projection_leaves_exactly_the_budget(kind: str, mode: str) -> None:
    model = adapted(kind, mode=mode)
    disturb(model)
    differences = list(model.base_model.differences())
    total = sum(difference.shape.numel() for difference in differences)
    assert sum(len(difference.values) for difference in differences) == total // 10
    assert all(difference.values.all() for difference in differences)


def test_saved_file_is_sparse_and_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    model = adapted(kind).eval()
    disturb(model)
    expected = logits(model, kind)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    own = {key for key in stored if "diffp_" in key}
    assert {key.rpartition(".")[2] for key in own} == {"indices", "values"}
    assert all("classifier" in key for key in stored.keys() - own)
    again = PeftModel.from_pretrained(base(kind), tmp_path)
    assert torch.equal(logits(again, kind), expected)
    assert not any(p.requires_grad for p in again.parameters())
    lean = PeftModel.from_pretrained(base(kind), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lean, kind), expected)
    trainable = PeftModel.from_pretrained(base(kind), tmp_path, is_trainable=True)
    assert all(p.requires_grad for n, p in trainable.named_parameters() if "diffp_" in n)


def test_merging_is_base_plus_difference_and_undone_to_the_bit(kind: str) -> None:
    model = adapted(kind).eval()
    disturb(model)
    expected, before = logits(model, kind), base_weights(model)
    due = dict(before)
    for name, layer in model.named_modules():
        if isinstance(layer, DiffPruningLayer):
            plain = name.removeprefix("base_model.model.")
            for parameter, difference in layer.differences("default").items():
                whole = torch.zeros(difference.shape.numel())
                whole[difference.indices] = difference.values.detach()
                due[f"{plain}.{parameter}"] = before[f"{plain}.{parameter}"] + whole.view(
                    difference.shape
                )
    model.merge_adapter(safe_merge=True)
    assert torch.equal(logits(model, kind), expected)
    merged = base_weights(model)
    assert all(torch.equal(merged[name], due[name]) for name in due)
    model.unmerge_adapter()
    after = base_weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model, kind), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, kind), logits(base(kind), kind))
    unloaded = model.merge_and_unload()
    assert not any("diffp_" in name for name, _ in unloaded.named_parameters())
    assert torch.equal(logits(unloaded, kind), expected)


def test_several_adapters(tmp_path: Path) -> None:
    config = DiffPruningConfig(task_type="CAUSAL_LM", target_sparsity=0.8, include_norm=False)
    model = adapted("llama").eval()
    model.add_adapter("other", config)
    disturb(model, "default")
    disturb(model, "other")
    outputs = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        outputs[name] = logits(model, "llama")
    assert not torch.equal(outputs["default"], outputs["other"])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base("llama"), tmp_path)
    again.load_adapter(tmp_path / "other", "second")
    again.set_adapter("second")
    assert torch.equal(logits(again, "llama"), outputs["other"])
    tuner = model.base_model
    tuner.set_adapter(["default", "other"])
    both = logits(model, "llama")
    before = base_weights(model)
    model.merge_adapter(["default", "other"])
    assert torch.equal(logits(model, "llama"), both)
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("other")
    model.unmerge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in base_weights(model).items())
    tuner.set_adapter("default")
    model.delete_adapter("other")
    assert not any(".other" in name for name, _ in model.named_parameters())
    assert torch.equal(logits(model, "llama"), outputs["default"])


def test_state_dict_knows_the_adapter_by_no_name() -> None:
    model = adapted("bert")
    keys = get_peft_model_state_dict(model)
    assert not any("default" in key for key in keys)
    keys = {key for key in keys if "diffp_" in key}
    training = {key.rpartition(".")[2] for key in keys}
    assert training == {"delta", "gates", "group_gate", "kept", "projected"}
    flat = adapted("bert", structured=False)
    assert not any("group_gate" in key for key in get_peft_model_state_dict(flat))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_base(dtype: torch.dtype) -> None:
    """Sums are in float32 and rounded once; merged and added weights are the same numbers."""
    config = DiffPruningConfig(task_type="CAUSAL_LM", target_sparsity=0.9)
    model = get_peft_model(base("llama").to(dtype), config).eval()
    assert {p.dtype for n, p in model.named_parameters() if "diffp_" in n} == {torch.float32}
    disturb(model)
    expected, before = logits(model, "llama"), base_weights(model)
    assert expected.dtype == dtype
    model.merge_adapter()
    assert torch.equal(logits(model, "llama"), expected)
    model.unmerge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in base_weights(model).items())


def test_one_closed_group_gate_closes_its_matrix() -> None:
    model = adapted("bert").eval()
    first = next(iter(model.base_model.differences()))
    first.delta.data.fill_(1)
    assert first.dense().eq(1).all()
    half = first.expected_nonzero()
    first.group_gate.data.fill_(-9)
    assert first.dense().eq(0).all()
    assert first.expected_nonzero() < half / 1000


def test_expected_share_is_that_of_drawn_gates() -> None:
    """Structured: an entry is open when its own gate and its group's are."""
    model = adapted("bert", gate_lr_ratio=2.0).train()
    tuner = model.base_model
    torch.manual_seed(0)
    for difference in tuner.differences():
        difference.delta.data.fill_(1)
        difference.gates.data.normal_()
        difference.group_gate.data.normal_()
    with torch.no_grad():
        counts = [
            sum(int(d.dense(noise=True).ne(0).sum()) for d in tuner.differences())
            for _ in range(300)
        ]
        drawn = sum(counts) / len(counts) / tuner.num_weights()
        assert drawn == pytest.approx(float(tuner.open_share()), abs=0.02)


def test_shared_weights_are_left_alone() -> None:
    targets = adapted("t5").base_model.targeted_module_names
    assert not any("shared" in name or "lm_head" in name for name in targets)
    assert not any("wte" in name for name in adapted("gpt2").base_model.targeted_module_names)
    with pytest.raises(ValueError, match="used in another place too"):
        adapted("gpt2", target_modules=["wte"])


def test_only_what_is_asked_for() -> None:
    model = adapted("bert", target_modules=["query"], include_bias=False)
    names = {n for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n}
    assert names
    assert all(".query.diffp_weight." in name for name in names)
    with pytest.raises(ValueError, match="no weight of its own"):
        adapted("bert", target_modules=["attention"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"target_sparsity": 1.0}, "target_sparsity must be between 0 and 1, got 1.0"),
        ({"target_sparsity": -0.5}, "target_sparsity"),
        ({"projection_ratio": 0}, "projection_ratio must be above 0"),
        ({"penalty_weight": -1}, "penalty_weight must not be negative"),
        ({"finishing_lr_ratio": 0}, "finishing_lr_ratio must be above 0"),
    ],
)
def test_values_out_of_range(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DiffPruningConfig(**fields)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    model = adapted("bert")
    disturb(model)
    model.save_pretrained(folder)
    return folder


def without(stored: dict[str, Tensor], ending: str) -> str:
    return next(key for key in stored if key.endswith(ending))


def damage(kind: str, stored: dict[str, Tensor]) -> None:
    values = without(stored, "query.diffp_weight.values")
    indices = values.replace("values", "indices")
    if kind == "missing":
        del stored[values]
    elif kind == "short":
        stored[values] = stored[values][:-1].clone()
    elif kind == "nan":
        stored[values][0] = torch.nan
    elif kind == "beyond":
        stored[indices] = torch.full_like(stored[indices].int(), 1000)
    elif kind == "order":
        stored[indices] = torch.zeros_like(stored[indices].int())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "lacks .*query.diffp_weight"),
        ("short", "indices and .* values"),
        ("nan", "not finite"),
        ("beyond", "has not: it is damaged"),
        ("order", "has not: it is damaged"),
    ],
)
def test_damaged_file_is_named(kind: str, says: str, saved: Path, tmp_path: Path) -> None:
    stored = load_file(saved / "adapter_model.safetensors")
    damage(kind, stored)
    save_file(stored, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((saved / "adapter_config.json").read_text())
    with pytest.raises(ValueError, match=says):
        PeftModel.from_pretrained(base("bert"), tmp_path)


def test_another_base_is_refused_and_another_type_is_not(saved: Path) -> None:
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="not the one that the difference was trained on"):
        PeftModel.from_pretrained(bert(), saved)
    PeftModel.from_pretrained(base("bert").to(torch.bfloat16), saved)


def test_checkpoint_before_the_projection_comes_back(tmp_path: Path) -> None:
    """Dense gates in a checkpoint; evaluation sees the gates without noise."""
    model = adapted("bert", gate_lr_ratio=3.0).eval()
    for difference in model.base_model.differences():
        difference.delta.data.normal_()
        difference.gates.data.normal_()
    expected = logits(model, "bert")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base("bert"), tmp_path).eval()
    assert torch.equal(logits(again, "bert"), expected)
    model.base_model.project()
    expected = logits(model, "bert")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base("bert"), tmp_path).eval()
    assert again.base_model.is_projected()
    assert torch.equal(logits(again, "bert"), expected)


def test_the_config_says_what_it_is(saved: Path) -> None:
    fields = json.loads((saved / "adapter_config.json").read_text())
    assert fields["peft_type"] == "DIFF_PRUNING"
    assert fields["finished"]
    assert set(fields["base_fingerprint"]) <= set(fields["target_modules"])


def test_no_warning_of_whole_embeddings_saved(saved: Path, tmp_path: Path) -> None:
    """Llama's embed_tokens gets a difference; PEFT would store the whole table beside it."""
    model = adapted("llama")
    assert "model.embed_tokens" in model.base_model.targeted_module_names
    disturb(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("base_layer" in key for key in stored)
    assert isinstance(model.base_model, DiffPruningModel)
