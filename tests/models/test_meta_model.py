# SPDX-License-Identifier: Apache-2.0
"""Kernels by device and by name: what is chosen, what is refused before any weight is loaded."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from transformers.integrations.liger import apply_liger_kernel

import hftune
from hftune import Recipe, RecipeError
from hftune.models.meta_model import check_liger, empty_model
from hftune.training.build import build_trainer
from hftune.training.distributed.launcher import Launch
from hftune.training.load_model import load_model
from hftune.training.plan import arguments
from hftune.training.plan.prepare import prepare

TINY: dict[str, Any] = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2,
                        "num_attention_heads": 4, "intermediate_size": 128}  # fmt: skip
needs_liger = pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs hftune[liger]")


@pytest.mark.parametrize(("attention", "said"), [(None, "sdpa"), ("eager", "eager")])
def test_a_model_attends_as_named(attention: str | None, said: str) -> None:
    model = empty_model(AutoModelForSequenceClassification, BertConfig(**TINY), attention)
    assert model.config._attn_implementation == said
    assert next(model.parameters()).device.type == "meta"


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_a_model_that_cannot_attend_so(attention: str) -> None:
    with pytest.raises(RecipeError, match=f"model.attn_implementation: {attention}: .*not support"):
        empty_model(AutoModelForSequenceClassification, DebertaV2Config(**TINY), attention)
    model = empty_model(AutoModelForSequenceClassification, DebertaV2Config(**TINY), None)
    assert model.config._attn_implementation == "eager"


def test_auto_is_what_is_left_out(make_recipe: Callable[..., Recipe], tiny_encoder: Path) -> None:
    model = {"path": str(tiny_encoder), "attn_implementation": "auto"}
    assert make_recipe(model=model).model == make_recipe().model
    assert load_model(prepare(make_recipe(model=model))).model.config._attn_implementation == "sdpa"


def test_adamw_is_fused(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe())
    optimizer = build_trainer(plan, load_model(plan)).create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["fused"] is True for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("given", "mixed", "tf32"),
    [
        ({"bf16": True}, None, True),
        ({}, "bf16", True),
        ({"bf16": True, "tf32": False}, None, False),
        ({"bf16": False}, None, None),
        ({"fp16": True}, None, None),
        ({"bf16": True, "use_cpu": True}, None, None),
    ],
)
def test_tf32_goes_with_bf16(
    given: dict[str, Any], mixed: str | None, tf32: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "is_torch_tf32_available", lambda: True)
    settings = {} if mixed is None else {"ACCELERATE_MIXED_PRECISION": mixed}
    arguments._choose_kernels(given, Launch(settings, gpus=1))
    assert given.get("tf32") is tf32


def test_losses_of_liger_are_left_out() -> None:
    given: dict[str, Any] = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}}
    arguments._choose_kernels(given, Launch({}, gpus=1))
    assert given["liger_kernel_config"] == {
        "rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("optim", "hint"),
    [("adamw_8bit", "hftune.bnb."), ("schedule_free_sgd", "hftune.schedulefree."),
     ("lomo", "lomo-optim"), ("stable_adamw", "torch-optimi")],
)  # fmt: skip
def test_an_optimizer_without_its_package(
    optim: str, hint: str, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "installed", lambda *packages: False)
    with pytest.raises(RecipeError, match=f"training.optim: {optim}: .*not installed") as error:
        prepare(make_recipe(training={"optim": optim, "max_grad_norm": 0}))
    assert f"pip install '{hint.replace('hftune.', 'hftune[').rstrip('.')}" in str(error.value.hint)


@pytest.mark.gpu
def test_each_run_says_how_single_precision_multiplies(make_recipe: Callable[..., Recipe]) -> None:
    """Transformers does so once a process, whatever comes after."""
    for half, said in ((True, "tf32"), (False, "ieee"), (True, "tf32")):
        prepare(make_recipe(training={"use_cpu": False, "bf16": half}))
        assert torch.backends.fp32_precision == said


@pytest.mark.gpu
@needs_liger
@pytest.mark.parametrize("kind", [LlamaForCausalLM, LlamaForSequenceClassification])
def test_liger_kernels_compute_the_same(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(LlamaConfig(**TINY, num_key_value_heads=2, pad_token_id=0)).cuda()
    ids = torch.randint(1, 99, (3, 17), device="cuda")

    def answer() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        logits.pow(2).mean().backward()
        parameters = dict(model.named_parameters())
        found = {name: one.grad.clone() for name, one in parameters.items() if one.grad is not None}
        return logits.detach(), found

    plain, gradients = answer()
    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    fused, others = answer()
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-4)
    largest = max(float(one.abs().max()) for one in gradients.values())
    for name, one in gradients.items():
        torch.testing.assert_close(others[name], one, atol=1e-4 * largest, rtol=0)


@pytest.mark.gpu
@needs_liger
def test_liger_kernels_know_their_models() -> None:
    check_liger(empty_model(AutoModelForSequenceClassification, LlamaConfig(**TINY), None))
    with pytest.raises(RecipeError, match="no kernels for BertForSequenceClassification"):
        check_liger(empty_model(AutoModelForSequenceClassification, BertConfig(**TINY), None))


@pytest.mark.gpu
@needs_liger
def test_a_run_with_liger_kernels(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    given = {"use_cpu": False, "bf16": False, "max_steps": 5}
    plain = hftune.train(make_recipe("text-generation", given))
    fused = {**given, "use_liger_kernel": True, "output_dir": str(tmp_path / "fused")}
    run = hftune.train(make_recipe("text-generation", fused))
    assert run.metrics["eval_loss"] == pytest.approx(plain.metrics["eval_loss"], rel=1e-3)


@pytest.mark.gpu
def test_the_kernels_of_the_optimizer_step_alike(make_recipe: Callable[..., Recipe]) -> None:
    """Fused AdamW against the loop, on the GPU."""
    ends = []
    for name in ("adamw_torch_fused", "adamw_torch"):
        given = {"use_cpu": False, "bf16": False, "tf32": False, "max_steps": 5, "optim": name}
        plan = prepare(make_recipe(training=given))
        trainer = build_trainer(plan, load_model(plan))
        trainer.train()
        ends.append([one.detach().cpu() for one in trainer.model.parameters()])
    for fused, looped in zip(*ends, strict=True):
        torch.testing.assert_close(fused, looped, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs hftune[bnb]")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_bitsandbytes_steps_nearly_alike(name: str, make_recipe: Callable[..., Recipe]) -> None:
    """States in 8 bits round, and pages move; the loss goes where AdamW takes it."""
    losses = []
    for optim in (name, "adamw_torch"):
        given = {"use_cpu": False, "bf16": False, "max_steps": 20, "optim": optim}
        plan = prepare(make_recipe(training={**given, "learning_rate": 1e-3}))
        losses.append(build_trainer(plan, load_model(plan)).train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
