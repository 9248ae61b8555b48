# SPDX-License-Identifier: Apache-2.0
"""AdaLoRA: the budget of ranks falls as the paper's cubic says, and a resume is exact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import hftune
from hftune import HftuneError, Recipe, RecipeError, Run
from hftune.methods.adalora.method import phases
from hftune.training.build import build_trainer
from hftune.training.checkpoints import latest_checkpoint
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from tests.stop_at import StopAt

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT says of AdaLoRA
METHOD = {"name": "adalora", "init_r": 4, "target_r": 2, "target_modules": ["query", "value"]}
#: Two layers with two matrices each.
MATRICES = 4


def saved_ranks(run: Run) -> list[int]:
    weights = load_file(run.model_path / "adapter_model.safetensors")
    return [len(value) for name, value in weights.items() if "lora_E" in name]


def log(run: Run) -> dict[int, int]:
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["rank_budget"] for line in lines if "rank_budget" in line}


@pytest.mark.draws
@pytest.mark.parametrize(("interval", "tfinal"), [(8, 0), (1, 0.5)])
def test_the_budget_falls_and_is_met(
    interval: int, tfinal: float, make_recipe: Callable[..., Recipe]
) -> None:
    """From 4 to 2 ranks a matrix; in between, equation 12 of the paper. deltaT need not divide."""
    options = {**METHOD, "tinit": 0.2, "tfinal": tfinal, "deltaT": interval}
    run = hftune.train(make_recipe(training={"max_steps": 14}, method=options))
    begin, end = 2, 14 - int(tfinal * 14)

    def due(step: int) -> int:
        left = 1 - min(max(step - begin, 0) / (end - begin), 1)
        return int(2 * MATRICES + 2 * MATRICES * left**3)

    assert log(run) == {step: due(step) for step in range(1, 15)}
    assert sum(saved_ranks(run)) == 2 * MATRICES == log(run)[14]
    assert (run.path / "plots" / "ranks.svg").is_file()
    config = json.loads((run.model_path / "adapter_config.json").read_text())
    assert (config["tinit"], config["tfinal"], config["total_step"]) == (2, 14 - end, 14)
    ids = torch.tensor([[2, 6, 7, 8, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            Run(run.path).model(input_ids=ids).logits, run.model(input_ids=ids).logits
        )


def test_resumed_in_any_phase_it_ends_with_the_same_bits(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """One step after a checkpoint: before the first cut, between cuts, after the last."""
    training: dict[str, Any] = {"max_steps": 12, "eval_strategy": "no", "learning_rate": 0.05,
                                "per_device_train_batch_size": 2}  # fmt: skip
    method = {**METHOD, "tinit": 3, "tfinal": 4, "deltaT": 2}
    whole = hftune.train(make_recipe(training=training, method=method))
    expected = load_file(whole.model_path / "adapter_model.safetensors")
    for step in (3, 5, 10):
        folder = tmp_path / f"stopped-{step}"
        own = {**training, "output_dir": str(folder), "save_strategy": "steps",
               "save_steps": step - 1}  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            hftune.train(make_recipe(training=own, method=method), callbacks=[StopAt(step)])
        stopped = Run(folder)
        assert latest_checkpoint(stopped.checkpoints).name == f"checkpoint-{step - 1}"
        resumed = hftune.train(stopped.recipe, resume=True)
        actual = load_file(resumed.model_path / "adapter_model.safetensors")
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
        assert log(whole) == log(resumed)


def test_a_run_that_is_stopped_early_is_cut_to_its_budget(
    make_recipe: Callable[..., Recipe],
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 4

    method = {**METHOD, "tinit": 0.1, "tfinal": 0.1}
    run = hftune.train(make_recipe(training={"max_steps": 12}, method=method), callbacks=[Stop()])
    assert sum(saved_ranks(run)) == 2 * MATRICES


def test_phases() -> None:
    """A share is rounded down, so that shares below 1 in all leave a step."""
    assert phases({"tinit": 0.1, "tfinal": 0.5}, 3) == {"tinit": 0, "tfinal": 1, "total_step": 3}
    assert phases({"tinit": 5}, 6) == {"tinit": 5, "tfinal": 0, "total_step": 6}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_r": 4}, "target_r must be below init_r"),
        ({"target_r": 13, "init_r": 12}, "target_r must be below init_r"),
        ({"r": 4}, "begins with the rank init_r"),
        ({"total_step": 100}, "leave them out"),
        ({"tfinal": 2.5}, "are whole steps; below 1"),
        ({"deltaT": 0}, "method.deltaT: must be at least 1"),
        ({"beta1": 1.0}, "method.beta1: must be below 1"),
    ],
)
def test_a_budget_that_cannot_be_shows_in_the_recipe(
    options: dict[str, Any], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(method={**METHOD, **options})


def test_phases_that_fill_the_run_show_before_the_weights(
    make_recipe: Callable[..., Recipe],
) -> None:
    method = {**METHOD, "tinit": 0.5, "tfinal": 6}
    with pytest.raises(HftuneError, match="6 steps before the budget falls and 6 after it"):
        prepare(make_recipe(training={"max_steps": 12}, method=method))
    with pytest.raises(HftuneError, match="0 steps before the budget falls and 1 after it"):
        phases({"tfinal": 1}, 2)  # PEFT would mask before it has any scores


def test_the_pull_towards_orthogonality_is_that_of_peft(
    make_recipe: Callable[..., Recipe],
) -> None:
    """PEFT adds the penalty to the loss that a model computes itself: the same number."""
    options = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "orth_reg_weight": 2.0}
    plan = prepare(make_recipe("text-generation", method={"name": "adalora", **options}))
    model = load_model(plan).model
    batch = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[i] for i in range(4)]
    )
    with_penalty = model(**batch).loss
    model.peft_config["default"].orth_reg_weight = 1e-12
    without = model(**batch).loss
    penalty = plan.objective.method.penalty(model)
    torch.testing.assert_close(penalty, with_penalty - without, atol=1e-5, rtol=1e-5)
    trainer = build_trainer(plan, LoadedModel(model))
    trainer.current_gradient_accumulation_steps = 2
    _, denominator = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    share = trainer.compute_loss(model, batch, num_items_in_batch=denominator)
    torch.testing.assert_close(share, without + penalty / 2, atol=1e-4, rtol=1e-4)
