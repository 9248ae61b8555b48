# SPDX-License-Identifier: Apache-2.0
"""Diff pruning through recipes: phases, penalty, resuming, the best checkpoint, bad input."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import hftune
from hftune import HftuneError, Recipe, RecipeError
from hftune.methods.diff_pruning.gates import num_kept
from hftune.methods.diff_pruning.method import projection_step
from hftune.methods.peft import peft_configs
from hftune.methods.tuners import TUNERS
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare

TASKS = ("text-classification", "token-classification", "text-generation", "text2text-generation")
METHOD = {"name": "diff_pruning", "target_sparsity": 0.9}
STEPS = {"max_steps": 8, "learning_rate": 1e-3, "eval_strategy": "no", "save_strategy": "no"}


class Watch(TrainerCallback):
    """Notes at each step whether the mask is fixed, and how many weights differ."""

    def __init__(self) -> None:
        self.projected: list[bool] = []
        self.masks: list[list[torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        tuner = model.base_model
        self.projected.append(tuner.is_projected())
        self.masks.append([d.kept.clone() for d in tuner.differences()])


@pytest.mark.draws
@pytest.mark.parametrize("task", TASKS)
def test_every_task_ends_with_the_exact_budget(
    task: str, make_recipe: Callable[..., Recipe]
) -> None:
    watch = Watch()
    recipe = make_recipe(task, STEPS, method=METHOD)
    run = hftune.train(recipe, callbacks=[watch])
    assert watch.projected == [False] * 3 + [True] * 5
    tuner = run.model.base_model
    keep = num_kept(tuner.num_weights(), 0.9)
    nonzero = [len(difference.values) for difference in tuner.differences()]
    assert 0.9 * keep < sum(nonzero) <= keep
    assert sum(int(mask.sum()) for mask in watch.masks[3]) == keep
    assert all(map(torch.equal, watch.masks[3], watch.masks[-1]))
    saved = load_file(run.model_path / "adapter_model.safetensors")
    values = [value for key, value in saved.items() if key.endswith(".values")]
    assert sum(len(value) for value in values) == sum(nonzero)
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    shares = [line["open_share"] for line in log if "open_share" in line]
    assert shares[0] > 0.9
    assert shares[-1] == pytest.approx(0.1, abs=1e-3)
    assert (run.path / "plots" / "gates.png").exists()
    again = hftune.load(run.path)
    batch = torch.arange(6, 16).view(2, 5)
    inputs = {"input_ids": batch}
    if task == "text2text-generation":
        inputs["decoder_input_ids"] = batch
    with torch.no_grad():
        assert torch.equal(run.model(**inputs).logits, again.model(**inputs).logits)


def test_penalty_counts_once_a_step_however_it_is_split(make_recipe: Callable[..., Recipe]) -> None:
    """Gradients of 1 x 8 and 4 x 2 rows: with open gates the loss has no noise but the penalty."""
    gradients = {}
    for rows, groups in ((8, 1), (2, 4)):
        plan = prepare(
            make_recipe(
                training={**STEPS, "per_device_train_batch_size": rows,
                          "gradient_accumulation_steps": groups, "max_grad_norm": 0},
                method={**METHOD, "penalty_schedule": "constant", "alpha_init": 30.0,
                        "gate_lr_ratio": 1.0, "projection_ratio": 1},
            )
        )  # fmt: skip
        model = load_model(plan).model
        for difference in model.base_model.differences():
            difference.gates.data.fill_(3.0)
            difference.delta.requires_grad_(False)
        trainer = build_trainer(plan, LoadedModel(model))
        trainer.args.max_steps = 1
        seen: dict[str, torch.Tensor] = {}

        class Take(TrainerCallback):
            def on_pre_optimizer_step(
                self, args: Any, state: Any, control: Any, **kwargs: Any
            ) -> None:
                for name, parameter in kwargs["model"].named_parameters():
                    if name.endswith(".gates"):
                        seen[name] = parameter.grad.clone()  # noqa: B023

        trainer.add_callback(Take())
        trainer.train()
        gradients[rows] = seen
    tuner = model.base_model
    total = tuner.num_weights()
    opened = torch.sigmoid(torch.tensor(3.0))
    due = 30 * opened * (1 - opened) * torch.sigmoid(torch.tensor(30.0)) / total
    for name, gradient in gradients[8].items():
        torch.testing.assert_close(gradient, gradients[2][name])
        torch.testing.assert_close(gradient, due.expand_as(gradient), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", ["l0", "l1"])
def test_resumed_in_each_phase_ends_with_the_same_bits(
    mode: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """From before the projection, at it, and after it; with clipping, accumulation and dropout."""
    training = {
        **STEPS, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 9,
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_grad_norm": 0.5,
    }  # fmt: skip
    model = {"path": str(make_recipe().model.path), "config": {"hidden_dropout_prob": 0.1}}
    whole = hftune.train(
        make_recipe(training=training, method={**METHOD, "mode": mode}, model=model)
    )
    expected = load_file(whole.model_path / "adapter_model.safetensors")
    for step in (2, 4, 6):
        folder = tmp_path / f"from{step}"
        shutil.copytree(whole.path, folder)
        shutil.rmtree(folder / "model")
        for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
            if int(checkpoint.name.rpartition("-")[2]) > step:
                shutil.rmtree(checkpoint)
        recipe = Recipe.load(folder / "recipe.yaml", [f"training.output_dir={folder}"])
        resumed = hftune.train(recipe, resume=True)
        actual = load_file(resumed.model_path / "adapter_model.safetensors")
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(actual[key], value), (step, key)


def test_best_checkpoint_is_one_after_the_projection(make_recipe: Callable[..., Recipe]) -> None:
    """The dense model may be the better one, but it is not what was asked for."""
    training = {**STEPS, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps",
                "save_steps": 1, "load_best_model_at_end": True, "greater_is_better": False,
                "metric_for_best_model": "loss", "learning_rate": 1e-2}  # fmt: skip
    method = {**METHOD, "target_sparsity": 0.999, "finishing_lr_ratio": 100.0}
    run = hftune.train(make_recipe(training=training, method=method))
    tuner = run.model.base_model
    assert sum(len(d.values) for d in tuner.differences()) <= num_kept(tuner.num_weights(), 0.999)
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    after = {step: loss for step, loss in losses.items() if step >= 4}
    assert run.metrics["eval_loss"] == pytest.approx(min(after.values()), abs=1e-6)


def test_a_run_stopped_early_is_sparse_too(make_recipe: Callable[..., Recipe]) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    run = hftune.train(make_recipe(training=STEPS, method=METHOD), callbacks=[Stop()])
    tuner = run.model.base_model
    assert all(difference.finished for difference in tuner.differences())
    assert sum(len(d.values) for d in tuner.differences()) <= num_kept(tuner.num_weights(), 0.9)


def test_gradient_checkpointing_draws_the_same_gates_twice(
    make_recipe: Callable[..., Recipe],
) -> None:
    files = []
    for recompute in (False, True):
        folder = f"{make_recipe().training['output_dir']}{recompute}"
        training = {**STEPS, "activation_checkpointing": recompute, "output_dir": folder}
        run = hftune.train(make_recipe("text-generation", training=training, method=METHOD))
        files.append(load_file(run.model_path / "adapter_model.safetensors"))
    for key, value in files[0].items():
        torch.testing.assert_close(files[1][key], value)


@pytest.mark.parametrize(
    ("method", "training", "says"),
    [
        ({"target_sparsity": 1}, {}, "target_sparsity: must be below 1"),
        ({"target_sparsity": -0.1}, {}, "target_sparsity: must be above 0"),
        ({"projection_ratio": 1.5}, {}, "projection_ratio: must be at most 1"),
        ({"projection_ratio": 0.9}, {"max_steps": 2}, "leaves none with a fixed mask"),
        ({"mode": "l2"}, {}, "mode: "),
        ({"mode": "l1", "structured": False}, {}, "l1 has no gates"),
        ({"projection_ratio": 1, "finishing_lr_ratio": 2.0}, {}, "no step follows"),
        ({"target_modules": ["querry"]}, {}, "querry.*is not in"),
        ({"target_modules": ["attention"]}, {}, "no weight of its own"),
        ({"target_modules": "nothing"}, {}, "candidates are"),
        ({"finished": True}, {}, "unknown key"),
    ],
)
def test_bad_recipes_say_what_to_do(
    method: dict, training: dict, says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises((RecipeError, HftuneError)) as caught:
        prepare(make_recipe(training={**STEPS, **training}, method={**METHOD, **method}))
    assert re.search(says, str(caught.value)), caught.value


def test_a_quantized_base_is_refused(make_recipe: Callable[..., Recipe]) -> None:
    model = {"path": "x", "quantization": {"load_in_4bit": True}}
    with pytest.raises(RecipeError, match="a quantized base no longer has"):
        make_recipe(method=METHOD, model=model)


@pytest.mark.slow
def test_the_cards_lines_load_it_in_a_fresh_process(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """One child, with plain PEFT, the import that the card names, and no more."""
    run = hftune.train(make_recipe(training=STEPS, method=METHOD))
    card = (run.model_path / "README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(run.model_path))
    assert "import hftune.methods.diff_pruning" in lines
    ids = torch.arange(8, 20).view(2, 6)
    program = lines + "\nimport torch, json\nmodel.eval()\nids = torch.arange(8, 20).view(2, 6)\n"
    program += "print(json.dumps(model(input_ids=ids).logits.tolist()))\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = run.model(input_ids=ids).logits
    assert torch.equal(torch.tensor(json.loads(done.stdout.splitlines()[-1])), expected)


def test_tables_agree() -> None:
    assert set(TUNERS) <= set(peft_configs())
    assert {field.name for field in dataclasses.fields(peft_configs()["diff_pruning"])} > {
        "target_sparsity", "structured", "mode",
    }  # fmt: skip


def test_projection_step() -> None:
    assert [projection_step(ratio, 10) for ratio in (0.01, 0.5, 0.96, 1.0)] == [1, 5, 10, 10]
