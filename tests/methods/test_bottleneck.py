# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters: what they compute, and that they behave as PEFT's own tuners do."""

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from hftune.methods.bottleneck import BottleneckConfig, BottleneckLayer
from hftune.methods.bottleneck.layer import InputTap
from tests.methods.tiny_models import batch, build

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")
FAMILIES = ("bert", "llama", "gpt2", "t5", "bart", "vit", "mixtral")
#: Models whose layers no placement knows -> what a user names.
BY_PATTERN = {"swin": ["output.dense", "mlp.fc2"], "convnext": ["pwconv2"]}
CASES = [(family, placement) for family in FAMILIES for placement in PLACEMENTS]


def adapted(family: str, placement: str = "houlsby", *, seed: int = 0, **options: Any) -> Any:
    """A model whose adapters have learned something: every weight of theirs is random."""
    config = BottleneckConfig(placement=placement, **{"r": 3, **options})
    model = get_peft_model(build(family), config).eval()
    randomize(model, "default", seed)
    return model


def randomize(model: nn.Module, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "bottleneck_" in name and f".{adapter}." in name:
            value = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.data.copy_(value)


def logits(model: Any, family: str) -> Tensor:
    with torch.no_grad():
        return model(**batch(family)).logits


def network(layer: Any, activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An adapter's formula, from its weights alone."""
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]

    def compute(h: Tensor) -> Tensor:
        return activation(h @ down.weight.T + down.bias) @ up.weight.T + up.bias

    return compute


@pytest.mark.parametrize(("family", "placement"), CASES)
def test_nothing_changes_at_the_start(family: str, placement: str) -> None:
    base = build(family)
    expected = logits(base, family)
    model = get_peft_model(base, BottleneckConfig(placement=placement))
    assert torch.equal(logits(model, family), expected)


@pytest.mark.parametrize("family", sorted(BY_PATTERN))
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_models_that_only_a_pattern_describes(family: str, placement: str) -> None:
    base = build(family)
    expected = logits(base, family)
    config = BottleneckConfig(placement=placement, target_modules=BY_PATTERN[family], r=2)
    model = get_peft_model(base, config).eval()
    assert torch.equal(logits(model, family), expected)
    randomize(model, "default", 0)
    assert not torch.equal(logits(model, family), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_bert_by_hand(placement: str) -> None:
    """The whole encoder written out, layer by layer."""
    model = adapted("bert", placement)
    base = build("bert").bert
    tuned = model.get_base_model().bert.encoder
    ids = batch("bert")["input_ids"]
    with torch.no_grad():
        x = base.embeddings(ids)
        for index, block in enumerate(base.encoder.layer):
            adapters = {
                name: network(layer, F.gelu if placement == "houlsby" else F.relu)
                for name, layer in tuned.layer[index].named_modules()
                if isinstance(layer, BottleneckLayer)
            }
            values = block.attention.self(x)[0]
            a = block.attention.output.dense(values)
            if placement == "houlsby":
                a = a + adapters["attention.output.dense"](a)
            a = F.layer_norm(a + x, (16,), *_norm(block.attention.output.LayerNorm), eps=1e-12)
            inner = F.gelu(a @ block.intermediate.dense.weight.T + block.intermediate.dense.bias)
            f = inner @ block.output.dense.weight.T + block.output.dense.bias
            if placement == "houlsby":
                f = f + adapters["output.dense"](f)
            if placement == "parallel":
                f = f + 4 * adapters["output.dense"](a)
            x = F.layer_norm(f + a, (16,), *_norm(block.output.LayerNorm), eps=1e-12)
            if placement == "pfeiffer":
                total = f + a + adapters["output.LayerNorm"](x)
                x = F.layer_norm(total, (16,), *_norm(block.output.LayerNorm), eps=1e-12)
        actual = model.get_base_model().bert(ids).last_hidden_state
    assert len(adapters) == (2 if placement == "houlsby" else 1)
    torch.testing.assert_close(actual, x, atol=1e-5, rtol=1e-5)


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias


#: Pre-norm family -> ends of the names of its attention and feed-forward modules, and of the
#: layers in them that carry the adapters.
SUBLAYERS = {
    "llama": (["self_attn"], "mlp", ["self_attn.o_proj"], "mlp.down_proj"),
    "gpt2": (["attn"], "mlp", ["attn.c_proj"], "mlp.c_proj"),
    "t5": (["SelfAttention", "EncDecAttention"], "DenseReluDense",
           ["SelfAttention.o", "EncDecAttention.o"], "DenseReluDense.wo"),
    "vit": (["attention"], "mlp", ["attention.o_proj"], "mlp.fc2"),
    "mixtral": (["self_attn"], "mlp", ["self_attn.o_proj"], "mlp"),
}  # fmt: skip


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", sorted(SUBLAYERS))
def test_pre_norm_families_by_hooks_on_whole_sublayers(family: str, placement: str) -> None:
    """The reference hangs the formula behind the modules around the layers that we adapt."""
    model = adapted(family, placement)
    tuned = model.get_base_model()
    reference = build(family)
    attention, feed_forward, attention_sites, feed_forward_site = SUBLAYERS[family]
    places = [(feed_forward, feed_forward_site)]
    if placement == "houlsby":
        places += list(zip(attention, attention_sites, strict=True))
    hooked = 0
    for end, site in places:
        for name, module in reference.named_modules():
            if not name.endswith(f".{end}"):
                continue
            layer = tuned.get_submodule(name.removesuffix(end) + site)
            module.register_forward_hook(formula(layer, placement))
            hooked += 1
    assert hooked == sum(isinstance(module, BottleneckLayer) for module in tuned.modules())
    torch.testing.assert_close(
        logits(model, family), logits(reference, family), atol=1e-4, rtol=1e-4
    )


def formula(layer: Any, placement: str) -> Any:
    compute = network(layer, F.gelu if placement == "houlsby" else F.relu)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + (4 * compute(args[0]) if placement == "parallel" else compute(hidden))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_bart_by_hooks_on_its_layers(placement: str) -> None:
    """Post-norm, and feed-forward is no module of its own."""
    model = adapted("bart", placement)
    reference = build("bart")
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, BottleneckLayer):
            continue
        compute = network(layer, F.gelu if placement == "houlsby" else F.relu)
        module = reference.get_submodule(name)
        if placement == "houlsby":
            module.register_forward_hook(lambda m, x, y, f=compute: y + f(y))
        elif placement == "pfeiffer":
            module.register_forward_hook(
                lambda m, x, y, f=compute: F.layer_norm(x[0] + f(y), (16,), m.weight, m.bias)
            )
        else:
            seen: list[Tensor] = []
            first = reference.get_submodule(name.replace("fc2", "fc1"))
            first.register_forward_pre_hook(lambda m, x, seen=seen: seen.append(x[0]))
            module.register_forward_hook(
                lambda m, x, y, f=compute, seen=seen: y + 4 * f(seen.pop())
            )
    torch.testing.assert_close(
        logits(model, "bart"), logits(reference, "bart"), atol=1e-5, rtol=1e-5
    )


def test_options_reach_the_formula() -> None:
    model = adapted(
        "llama", "pfeiffer", non_linearity="tanh", scaling=2.5, reduction_factor=8, r=None
    )
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    x = torch.randn(2, 3, 32)
    base = layer.base_layer(x)
    compute = network(layer, torch.tanh)
    torch.testing.assert_close(layer(x), base + 2.5 * compute(base))
    assert layer.bottleneck_down["default"].weight.shape == (2, 16)


def test_dropout_is_inside_the_bottleneck() -> None:
    model = adapted("llama", "pfeiffer", dropout=0.5, r=200)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    x = torch.randn(2, 3, 32)
    still = layer(x)
    assert torch.equal(layer(x), still)
    layer.train()
    inner: list[Tensor] = []
    layer.bottleneck_up["default"].register_forward_pre_hook(lambda m, a: inner.append(a[0]))
    layer(x)
    active = layer.bottleneck_act["default"](layer.bottleneck_down["default"](layer.base_layer(x)))
    kept = inner[0] != 0
    torch.testing.assert_close(inner[0][kept], 2 * active[kept])
    share = (kept.sum() / (active != 0).sum()).item()
    assert 0.4 < share < 0.6


@pytest.mark.parametrize(
    ("placement", "init", "kind"),
    [("pfeiffer", True, "normal"), ("parallel", True, "kaiming_uniform"),
     ("houlsby", "kaiming_uniform", "kaiming_uniform"), ("parallel", "normal", "normal")],
)  # fmt: skip
def test_down_projections_are_drawn_as_said(placement: str, init: Any, kind: str) -> None:
    config = BottleneckConfig(placement=placement, init_weights=init, r=2000)
    model = get_peft_model(build("llama"), config)
    down = [p for n, p in model.named_parameters() if "bottleneck_down" in n and p.dim() == 2]
    for weight in down:
        if kind == "normal":  # a normal cut at two deviations keeps 0.88 of its own
            assert weight.abs().max() <= 0.02
            assert abs(weight.std().item() / 0.01 - 0.88) < 0.02
        else:  # uniform within 1 / sqrt(inputs)
            assert weight.abs().max() <= 0.25
            assert abs(weight.std().item() - 0.25 / 3**0.5) < 0.005


def test_init_weights_false_is_no_identity() -> None:
    base = build("llama")
    expected = logits(base, "llama")
    model = get_peft_model(base, BottleneckConfig(init_weights=False))
    assert not torch.allclose(logits(model, "llama"), expected)


@pytest.mark.parametrize(("family", "placement"), CASES)
def test_what_trains_and_what_is_saved(family: str, placement: str, tmp_path: Path) -> None:
    """Two projections with biases at every place, 2 r d + r + d numbers, and nothing else."""
    model = adapted(family, placement)
    places = model.base_model.targeted_module_names
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == len(places) * (2 * 3 * 16 + 3 + 16)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved) == {
        f"base_model.model.{place}.bottleneck_{part}.{kind}"
        for place in places
        for part in ("down", "up")
        for kind in ("weight", "bias")
    }
    again = PeftModel.from_pretrained(build(family), tmp_path).eval()
    assert torch.equal(logits(again, family), logits(model, family))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    trained = PeftModel.from_pretrained(build(family), tmp_path, is_trainable=True)
    assert trained.get_nb_trainable_parameters()[0] == trainable


@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_adapters_learn(family: str, placement: str) -> None:
    model = get_peft_model(build(family), BottleneckConfig(placement=placement, r=3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the down projection learns once the up projection is not zero
        optimizer.zero_grad()
        model(**batch(family)).logits.square().mean().backward()
        optimizer.step()
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    weights = {n for n in before if "bottleneck_" in n}
    assert changed == weights


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_several_adapters(family: str) -> None:
    """Each gives what it gives alone; two add up in any order; deleting one leaves the others."""
    model = adapted(family, "pfeiffer")
    base = logits(build(family), family)
    alone = {"default": logits(model, family)}
    for name, placement in (("second", "parallel"), ("third", "houlsby")):
        model.add_adapter(name, BottleneckConfig(placement=placement, r=5))
        assert torch.equal(logits(model, family), alone["default"])
        randomize(model, name, 7)
        model.set_adapter(name)
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trainable
        assert all(f".{name}." in n for n in trainable)
        alone[name] = logits(model, family)
        model.set_adapter("default")
    assert len({value.sum().item() for value in alone.values()}) == 3
    model.base_model.set_adapter(["second", "third"])
    both = logits(model, family)
    model.base_model.set_adapter(["third", "second"])
    torch.testing.assert_close(logits(model, family), both, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both, alone["second"])
    model.set_adapter("third")
    with model.disable_adapter():
        assert torch.equal(logits(model, family), base)
    assert torch.equal(logits(model, family), alone["third"])
    model.delete_adapter("second")
    assert torch.equal(logits(model, family), alone["third"])
    assert not any(".second." in name for name in model.state_dict())
    with pytest.warns(UserWarning, match="third was active which is now deleted"):
        model.delete_adapter("third")
    model.set_adapter("default")
    assert torch.equal(logits(model, family), alone["default"])


def test_two_sequential_adapters_read_the_same(make_sum: Callable[..., Tensor]) -> None:
    """Not one after the other: h + f(h) + g(h)."""
    model = adapted("llama", "pfeiffer")
    model.add_adapter("other", BottleneckConfig(placement="pfeiffer", r=4))
    randomize(model, "other", 3)
    model.base_model.set_adapter(["default", "other"])
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(layer(x), make_sum(layer, x))


@pytest.fixture
def make_sum() -> Callable[..., Tensor]:
    def compute(layer: Any, x: Tensor) -> Tensor:
        h = layer.base_layer(x)
        parts = []
        for name in ("default", "other"):
            down, up = layer.bottleneck_down[name], layer.bottleneck_up[name]
            parts.append(F.relu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias)
        return h + parts[0] + parts[1]

    return compute


@pytest.mark.parametrize("call", [
    lambda model: model.merge_and_unload(),
    lambda model: model.merge_adapter(),
    lambda model: model.unmerge_adapter(),
])  # fmt: skip
def test_merging_is_refused(call: Callable[[Any], Any]) -> None:
    model = adapted("llama", "parallel")
    expected = logits(model, "llama")
    with pytest.raises(ValueError, match=r"cannot be merged: what lies between .* is not linear"):
        call(model)
    assert torch.equal(logits(model, "llama"), expected)  # and nothing is torn


def test_averaging_and_rows_of_several_adapters_are_refused() -> None:
    model = adapted("llama", "pfeiffer")
    with pytest.raises(ValueError, match="cannot be averaged"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with pytest.raises(ValueError, match="row by row"):
        model(**batch("llama"), adapter_names=["default", "__base__"])


@pytest.mark.parametrize(("family", "placement"), CASES)
def test_unload_gives_the_base_back(family: str, placement: str) -> None:
    base = build(family)
    expected, kinds = logits(base, family), [type(module) for module in base.modules()]
    restored = adapted(family, placement).unload()
    assert torch.equal(logits(restored, family), expected)
    assert [type(module) for module in restored.modules()] == kinds
    assert not any(module._forward_pre_hooks for module in restored.modules())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_copies_are_independent(placement: str) -> None:
    model = adapted("bart", placement)
    expected = logits(model, "bart")
    other = copy.deepcopy(model)
    assert torch.equal(logits(other, "bart"), expected)
    randomize(other, "default", 9)
    assert not torch.equal(logits(other, "bart"), expected)
    assert torch.equal(logits(model, "bart"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_half_precision_bases(dtype: torch.dtype, placement: str) -> None:
    """As for every PEFT tuner: float32 adapters on a half base, unless told otherwise."""
    for autocast, expected in ((True, torch.float32), (False, dtype)):
        base = build("llama").to(dtype)
        model = get_peft_model(
            base, BottleneckConfig(placement=placement, r=3), autocast_adapter_dtype=autocast
        )
        kinds = {p.dtype for n, p in model.named_parameters() if "bottleneck_" in n}
        assert kinds == {expected}
        randomize(model, "default", 0)
        half = logits(model, "llama")
        assert half.dtype is dtype
        whole = logits(adapted("llama", placement), "llama")
        assert torch.corrcoef(torch.stack([half.float().flatten(), whole.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "bart"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradient_checkpointing(family: str, placement: str, reentrant: bool) -> None:
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = adapted(family, placement).train()
        layers = [module for module in model.modules() if isinstance(module, BottleneckLayer)]
        count: list[nn.Module] = []
        for layer in layers:
            layer.register_forward_pre_hook(lambda module, args, seen=count: seen.append(module))
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
        model(**batch(family), use_cache=False).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        runs.append(len(count))
    plain, recomputed = gradients
    assert plain
    assert runs == [len(layers), 2 * len(layers)]
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


def test_modules_to_save(tmp_path: Path) -> None:
    config = BottleneckConfig(modules_to_save=["classifier"], r=3)
    model = get_peft_model(build("bert"), config)
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "bottleneck" not in n]
    assert trained == [
        f"base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.classifier.weight" in saved
    again = PeftModel.from_pretrained(build("bert"), tmp_path).eval()
    assert torch.equal(logits(again, "bert"), logits(model.eval(), "bert"))


def test_a_learned_activation_is_trained_and_saved(tmp_path: Path) -> None:
    model = adapted("llama", non_linearity="prelu")
    slopes = [p for n, p in model.named_parameters() if "bottleneck_act" in n]
    assert len(slopes) == 4
    assert all(slope.requires_grad for slope in slopes)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), tmp_path).eval()
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(logits(again, "llama"), logits(model, "llama"))


def test_loading_without_holding_weights_twice(tmp_path: Path) -> None:
    model = adapted("bart", "parallel")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("bart"), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(again, "bart"), logits(model, "bart"))


def test_transformers_own_loading(tmp_path: Path) -> None:
    model = adapted("llama", "parallel")
    model.save_pretrained(tmp_path)
    base = build("llama")
    base.load_adapter(str(tmp_path))
    assert torch.equal(logits(base.eval(), "llama"), logits(model, "llama"))


def test_repr_names_the_tuner() -> None:
    assert "bottleneck.BottleneckLayer(" in repr(adapted("llama"))


def test_a_tap_keeps_threads_apart() -> None:
    """``DataParallel`` runs replicas that share the tap, a thread each."""
    tap, taken = InputTap(), {}
    both_in = threading.Barrier(2)

    def run(value: int) -> None:
        tap(nn.Identity(), (torch.tensor(value),))
        both_in.wait()
        taken[value] = tap.take().item()

    threads = [threading.Thread(target=run, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == {1: 1, 2: 2}
    assert not tap.kept


def test_taps_let_go() -> None:
    model = adapted("bart", "parallel")
    logits(model, "bart")
    with model.disable_adapter():
        logits(model, "bart")
    taps = [m.tap for m in model.modules() if isinstance(m, BottleneckLayer)]
    assert len(taps) == 4
    assert not any(tap.kept for tap in taps)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"r": 0}, "r: 0 must be at least 1"),
        ({"r": -3}, "r: -3 must be at least 1"),
        ({"reduction_factor": 0.5}, "reduction_factor: 0.5 must be at least 1"),
        ({"r": 8, "reduction_factor": 16}, "give r or reduction_factor, not both"),
        ({"placement": "inside"}, "'inside' is none of houlsby, pfeiffer, parallel"),
        ({"non_linearity": "relux"}, "non_linearity: 'relux' is none of .*gelu.*relu"),
        ({"dropout": 1.0}, "dropout: 1.0 must be at least 0 and below 1"),
        ({"scaling": 0}, "scaling: 0 must be above 0"),
        ({"init_weights": "zeros"}, "init_weights: 'zeros' is none of"),
        ({"target_modules": "all-linear"}, "inside the sublayers"),
        ({"input_modules": ["fc1"]}, "goes with placement: parallel and target_modules only"),
        ({"layers_pattern": "h"}, "only with layers_to_transform"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BottleneckConfig(**options)


def test_the_config_says_what_it_will_do(tmp_path: Path) -> None:
    """Defaults and places are spelled out in what is saved, and read back the same."""
    config = BottleneckConfig()
    assert (config.reduction_factor, config.placement, config.non_linearity) == (
        16,
        "pfeiffer",
        "relu",
    )
    assert BottleneckConfig(placement="houlsby").non_linearity == "gelu"
    assert BottleneckConfig(placement="parallel").scaling == 4
    assert BottleneckConfig(r=64).reduction_factor is None
    model = adapted("bart", "parallel")
    model.save_pretrained(tmp_path)
    saved = BottleneckConfig.from_pretrained(tmp_path)
    assert saved.peft_type == "BOTTLENECK"
    assert saved.target_modules == r"(.*\.)?\d+\.(fc2)"
    assert saved.input_modules == r"(.*\.)?\d+\.(fc1)"
    told_by_saving = {"inference_mode": True, "auto_mapping": saved.auto_mapping}
    assert saved.to_dict() == model.peft_config["default"].to_dict() | told_by_saving


def test_the_users_pair_of_modules() -> None:
    config = BottleneckConfig(
        placement="parallel", target_modules=["mlp.down_proj"], input_modules=["mlp.gate_proj"], r=3
    )
    model = get_peft_model(build("llama"), config).eval()
    randomize(model, "default", 0)
    torch.testing.assert_close(
        logits(model, "llama"), logits(adapted("llama", "parallel"), "llama")
    )


def test_two_adapters_at_one_place_read_one_module() -> None:
    model = adapted("llama", "parallel")
    other = BottleneckConfig(
        placement="parallel", target_modules=["mlp.down_proj"], input_modules=["self_attn.q_proj"]
    )
    with pytest.raises(
        ValueError, match=r"another adapter here reads .*up_proj, this one .*q_proj"
    ):
        model.add_adapter("other", other)


def test_a_pair_of_modules_of_other_widths() -> None:
    """What is read and what is added to need not be equally wide."""

    class Narrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleDict({"first": nn.Linear(4, 6), "last": nn.Linear(6, 3)})

        def forward(self, x: Tensor) -> Tensor:
            return self.layer["last"](self.layer["first"](x).tanh())

    base, x = Narrowing(), torch.randn(5, 4)
    plain = base(x)
    config = BottleneckConfig(
        placement="parallel", target_modules=["last"], input_modules=["first"], r=2
    )
    model = get_peft_model(base, config)
    randomize(model, "default", 0)
    compute = network(base.layer["last"], F.relu)
    torch.testing.assert_close(model(x), plain + 4 * compute(x))


def test_hidden_states_are_those_of_the_adapted_model() -> None:
    model = adapted("bert", "pfeiffer").get_base_model().bert
    with torch.no_grad():
        output = model(**batch("bert"), output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


CHILD = """
import sys
from pathlib import Path
from peft import PeftConfig, PeftModel
from safetensors.torch import save_file
from tests.methods.tiny_models import build
from tests.methods.test_bottleneck import logits

root = Path(sys.argv[1])
folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
import hftune.methods.bottleneck

found = {}
for folder in folders:
    family = folder.name.partition("-")[0]
    model = PeftModel.from_pretrained(build(family), folder).eval()
    found[folder.name] = logits(model, family).contiguous()
save_file(found, root / "found.safetensors")
"""
STRANGER = """
import sys
from peft import PeftConfig
try:
    PeftConfig.from_pretrained(sys.argv[1])
except KeyError as error:
    print("KeyError", error)
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_logits(tmp_path: Path) -> None:
    expected = {}
    for family, placement in CASES:
        model = adapted(family, placement)
        model.save_pretrained(tmp_path / f"{family}-{placement}")
        expected[f"{family}-{placement}"] = logits(model, family)
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True)
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=name)
    folder = str(tmp_path / "bert-houlsby")
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, folder], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "KeyError 'BOTTLENECK'"  # as the model card says
