# SPDX-License-Identifier: Apache-2.0
"""ReLoRA: the function stays at a restart, the sum has a high rank, and a resume is exact."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.methods.relora.method import Cycles, Restarts, lora_layers, reset_state, restart
from hftune.training.checkpoints import latest_checkpoint
from tests.stop_at import StopAt

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
METHOD = {"name": "relora", "r": 2, "merge_every": 3, "rewarm_steps": 2}


def adapted(rank: int = 4) -> tuple[Any, nn.Linear]:
    """A linear layer of 10 to 5 under LoRA, and the bare layer inside."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(10, 5, bias=False))
    nn.init.zeros_(model[0].weight)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"]))
    return model, next(lora_layers(model))[1].get_base_layer()


def trained(steps: int, merge_every: int | None, noise: float = 0.1) -> tuple[float, Tensor]:
    """Regression, 200 rows, 10 to 5; the right answer has rank 5, and LoRA 4."""
    model, base = adapted()
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 10, generator=chance)
    wanted = 1.5 * torch.linalg.qr(torch.randn(10, 5, generator=chance)).Q
    outputs = inputs @ wanted + noise * torch.randn(200, 5, generator=chance)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for step in range(1, steps + 1):
        loss = ((model(inputs) - outputs) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if merge_every and step % merge_every == 0 and step < steps:
            restart(model, seed=step)
            for parameter in parameters:
                reset_state(
                    optimizer.state[parameter], parameter, Restarts(reset_optimizer="zero"), chance
                )
    layer = next(lora_layers(model))[1]
    total = base.weight + layer.get_delta_weight("default")
    return ((model(inputs) - outputs) ** 2).mean().item(), total.detach()


def test_restarts_reach_what_one_low_rank_update_cannot() -> None:
    """All five singular values are 1.5, so rank 4 leaves 1.5 ** 2 / 5 = .45; the noise is .01."""
    plain, update = trained(300, None)
    assert torch.linalg.matrix_rank(update, tol=1e-4) == 4
    again, total = trained(300, 50)
    assert torch.linalg.matrix_rank(total, tol=1e-4) == 5
    assert again < 0.02 < 0.4 < plain


def test_a_restart_leaves_the_function_and_both_generators() -> None:
    model, base = adapted()
    layer = next(lora_layers(model))[1]
    nn.init.normal_(layer.lora_B["default"].weight)
    inputs = torch.randn(7, 10)
    before, first = model(inputs), layer.lora_A["default"].weight.detach().clone()
    state = torch.get_rng_state()
    drift = restart(model, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model(inputs), before, atol=1e-5, rtol=0)
    assert layer.lora_B["default"].weight.count_nonzero() == 0
    assert not torch.allclose(layer.lora_A["default"].weight, first)
    assert drift < 1e-6
    assert base.weight.count_nonzero() > 0


def test_a_draw_depends_on_its_seed_alone() -> None:
    drawn = []
    for seed in (1, 1, 2):
        model, _ = adapted()
        torch.rand(seed)
        restart(model, seed)
        drawn.append(next(lora_layers(model))[1].lora_A["default"].weight.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("how", ["magnitude", "random", "zero"])
def test_the_optimizers_state_is_pruned(how: Any) -> None:
    parameter = nn.Parameter(torch.zeros(10, 20))
    values = torch.randperm(200).float().view(10, 20) - 100.5
    state = {"step": torch.tensor(3.0), "exp_avg": values.clone(), "exp_avg_sq": values**2}
    chance = torch.Generator().manual_seed(0)
    reset_state(state, parameter, Restarts(reset_optimizer=how, reset_ratio=0.94), chance)
    assert state["step"] == 0
    left = state["exp_avg"]
    assert left.count_nonzero() == (0 if how == "zero" else 12)
    assert torch.equal(left[left != 0], values[left != 0])
    if how == "magnitude":
        assert left[left != 0].abs().min() == values.abs().flatten().sort().values[-12]
    assert torch.equal(left != 0, state["exp_avg_sq"] != 0)


@pytest.mark.parametrize("how", ["magnitude", "random", "zero"])
def test_the_first_steps_after_a_reset_are_no_longer_than_adams_first(how: Any) -> None:
    """With an empty memory each of five steps is 1.011 rates at most, by Cauchy and Schwarz."""
    parameter = nn.Parameter(torch.zeros(10, 20))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.0)
    chance = torch.Generator().manual_seed(0)

    def step() -> Tensor:
        before = parameter.detach().clone()
        parameter.grad = torch.randn(10, 20, generator=chance)
        optimizer.step()
        return (parameter.detach() - before).abs()

    for _ in range(300):
        step()
    reset_state(optimizer.state[parameter], parameter, Restarts(reset_optimizer=how), chance)
    longest = torch.stack([step() for _ in range(5)]).max()
    assert longest < 1.02e-3


def test_the_steps_of_a_run() -> None:
    """20 steps, 4 of them whole, a cycle of 5: merges after 9 and 14, none too near the end."""
    shares = Restarts(merge_every=0.25, rewarm_steps=0.4, warm_start_steps=0.2)
    cycles = Cycles.of(shares, 20)
    assert cycles == Cycles(total=20, start=4, length=5, rewarm=2)
    assert [step for step in range(21) if cycles.merges_at(step)] == [9, 14]
    factors = [cycles.rate_factor(step) for step in range(21)]
    climbs = {4: 0.0, 5: 0.5, 9: 0.0, 10: 0.5, 14: 0.0, 15: 0.5}
    assert factors == [climbs.get(step, 1.0) for step in range(21)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"merge_every": 20}, "the first merge would come after 20 steps, and the run has 20"),
        ({"merge_every": 19, "rewarm_steps": 5}, "too few are left after it"),
        ({"merge_every": 4, "rewarm_steps": 5}, "more than the 4 between merges"),
        ({"merge_every": 10, "warm_start_steps": 0.6}, "after 22 steps"),
    ],
)
def test_a_run_that_is_too_short(given: dict[str, Any], message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        Cycles.of(Restarts(**given), 20)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": {**METHOD, "merge_every": 8}}, "the run has 8"),
        ({"method": {**METHOD, "merge_every": 0}}, "merge_every"),
        ({"method": {**METHOD, "reset_ratio": 1.5}}, "reset_ratio"),
        ({"method": {**METHOD, "r": 0}}, "method.r"),
        ({"method": {**METHOD, "use_dora": True}}, "use_dora: it does not go with relora"),
        ({"method": {**METHOD, "bias": "all"}}, "biases are not merged"),
        ({"method": {**METHOD, "init_lora_weights": "olora"}}, "not with 'olora'"),
        ({"training": {"lr_scheduler_type": "cosine_with_restarts"}}, "lr_scheduler_type"),
        ({"training": {"optim": "adafactor"}}, "optim"),
        ({"model": {"quantization": {"load_in_8bit": True}}}, "not into 8-bit ones"),
        (
            {"model": {"quantization": NF4}, "method": {**METHOD, "warm_start_steps": 2}},
            "quantized ones cannot train",
        ),
    ],
)
def test_refused(make_recipe: Callable[..., Recipe], sections: Any, message: str) -> None:
    path = make_recipe().model.path
    training = {"max_steps": 8, **sections.pop("training", {})}
    model = {"path": path, **sections.pop("model", {})}
    with pytest.raises(HftuneError, match=message):
        hftune.check(make_recipe(training=training, model=model, **{"method": METHOD, **sections}))


def run_for(
    make_recipe: Callable[..., Recipe],
    folder: Path,
    warm_start_steps: int = 0,
    quantization: dict[str, Any] | None = None,
    **training: Any,
) -> Recipe:
    training = {
        "output_dir": str(folder), "max_steps": 11, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
        "lr_scheduler_type": "cosine", "save_total_limit": 9, "learning_rate": 1e-2,
        "warmup_steps": 0, "load_best_model_at_end": False, **training,
    }  # fmt: skip
    model = {
        "path": make_recipe().model.path,
        "config": {"hidden_dropout_prob": 0.1},
        "quantization": quantization,
    }
    method = {**METHOD, "warm_start_steps": warm_start_steps}
    return make_recipe(training=training, method=method, model=model)


@pytest.mark.parametrize("warm", [0, 3], ids=["LoRA from the start", "warm start"])
def test_resumed_in_any_phase_it_ends_with_the_same_bits(
    warm: int, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Merges after 3, 6 and 9 steps, or whole weights until 3 and merges after 6 and 9."""
    whole = hftune.train(run_for(make_recipe, tmp_path / "whole", warm_start_steps=warm))
    expected = load_file(whole.model_path / "model.safetensors")
    for stop in (3, 7):  # continue from 2, before LoRA or the first merge; from 6, just merged
        recipe = run_for(make_recipe, tmp_path / str(stop), warm_start_steps=warm)
        with pytest.raises(KeyboardInterrupt):
            hftune.train(recipe, callbacks=[StopAt(stop)])
        stopped = Run(tmp_path / str(stop))
        assert latest_checkpoint(stopped.checkpoints).name == f"checkpoint-{stop - 1}"
        resumed = load_file(
            hftune.train(stopped.recipe, resume=True).model_path / "model.safetensors"
        )
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_run_from_recipe_to_plain_model(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = hftune.train(run_for(make_recipe, tmp_path / "run"))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in log if "loss" in line}
    for step, rate in rates.items():  # logged after the step, so the rate is the next one's
        climb = {3: 0.0, 4: 0.5, 6: 0.0, 7: 0.5, 9: 0.0, 10: 0.5}.get(step - 1, 1.0)
        envelope = 1e-2 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 11))
        assert rate == pytest.approx(envelope * climb, abs=1e-9), step
    drifts = {line["step"]: line["merge_drift"] for line in log if "merge_drift" in line}
    assert list(drifts) == [3, 6, 9]
    assert max(drifts.values()) < 1e-5

    plain: Any = AutoModelForSequenceClassification.from_pretrained(run.model_path)
    start: Any = AutoModelForSequenceClassification.from_pretrained(run.recipe.model.path)
    batch = run.tokenizer(["alpha red", "two green blue one"], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        expected = run.model(**batch).logits
        torch.testing.assert_close(plain(**batch).logits, expected, atol=1e-5, rtol=0)
    query = "bert.encoder.layer.0.attention.self.query.weight"
    change = plain.get_parameter(query) - start.get_parameter(query)
    assert torch.linalg.matrix_rank(change, tol=1e-5) > METHOD["r"]
    embeddings = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(plain.get_parameter(embeddings), start.get_parameter(embeddings))


def test_the_best_checkpoint_brings_its_own_base(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The rate ruins the model in the end; the best checkpoint's base was merged less often."""
    training = {
        "learning_rate": 1.0, "metric_for_best_model": "loss", "load_best_model_at_end": True,
    }  # fmt: skip
    run = hftune.train(run_for(make_recipe, tmp_path / "run", **training))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    assert min(losses, key=losses.__getitem__) < 9
    assert run.metrics["eval_loss"] == pytest.approx(min(losses.values()), abs=1e-6)


def test_a_quantized_base_is_merged_and_its_drift_told(
    make_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = hftune.train(run_for(make_recipe, tmp_path / "run", quantization=NF4))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    drifts = [line["merge_drift"] for line in log if "merge_drift" in line]
    assert len(drifts) == 3
    assert min(drifts) > 0.1
    assert "rounding to the base's type changed the merged update" in capsys.readouterr().err
    loaded = hftune.load(run.path)
    batch = run.tokenizer(["alpha red"], return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(**batch).logits, run.model(**batch).logits, atol=1e-5, rtol=0
        )
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
