# SPDX-License-Identifier: Apache-2.0
"""A run from recipe to folder: repeated, resumed, interrupted, and loaded without hftune."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.training.checkpoints import latest_checkpoint
from tests.stop_at import StopAt

TASKS = ["text-classification", "text-generation"]
METHODS = ["full", "lora"]
FILES = {
    "recipe.yaml",
    "environment.json",
    "data.json",
    "log.jsonl",
    "metrics.json",
    "checkpoints",
    "model",
    "plots",
}

#: A rate that ruins the model before the run ends.
RUINED_IN_THE_END = {
    "max_steps": 30,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "metric_for_best_model": "loss",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    (file,) = run.model_path.glob("*.safetensors")
    return load_file(file)


def assert_same_bits(first: Run, second: Run) -> None:
    left, right = weights_of(first), weights_of(second)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.draws
@pytest.mark.parametrize("task", TASKS)
def test_the_run_folder_tells_the_whole_story(
    task: str, make_recipe: Callable[..., Recipe]
) -> None:
    run = hftune.train(make_recipe(task, method="lora"))
    assert {path.name for path in run.path.iterdir()} == FILES
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3]
    metrics = run.metrics
    for key in ("train_runtime", "eval_loss", "train_tokens_per_second", "train_padding_share"):
        assert key in metrics
    adapter = weights_of(run)
    assert metrics["trainable_parameters"] == sum(value.numel() for value in adapter.values())
    plots = {path.name for path in (run.path / "plots").iterdir()}
    assert {"loss.svg", "loss.png", "learning_rate.svg"} <= plots
    if task == "text-classification":
        per_class = metrics["eval_per_class"]
        assert sum(row["support"] for row in per_class.values()) == 6
        f1 = sum(row["f1"] for row in per_class.values()) / len(per_class)
        assert metrics["eval_f1_macro"] == pytest.approx(f1)
    left_over = [path.name for path in run.path.rglob("*") if "partial" in path.name]
    assert left_over == []


def test_the_resolved_recipe_repeats_the_run_bit_for_bit(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = hftune.train(make_recipe(method={"name": "lora", "lora_dropout": 0.1}))
    overrides = [f"training.output_dir={tmp_path / 'again'}"]
    repeated = Recipe.load(first.path / "recipe.yaml", overrides)
    assert "output_dir" not in (first.path / "recipe.yaml").read_text()
    assert_same_bits(first, hftune.train(repeated))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_with_the_same_bits(
    task: str, method: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Dropout on, accumulation on, interrupted mid-epoch one step after a checkpoint."""
    dropout = "hidden_dropout_prob" if task == "text-classification" else "attention_dropout"
    model = {"path": make_recipe(task).model.path, "config": {dropout: 0.1}}
    training = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    whole = hftune.train(make_recipe(task, training, method=method, model=model))
    training["output_dir"] = str(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        hftune.train(make_recipe(task, training, method=method, model=model), callbacks=[StopAt(5)])
    stopped = Run(tmp_path / "stopped")
    assert latest_checkpoint(stopped.checkpoints).name == "checkpoint-3"
    assert not stopped.model_path.exists()
    resumed = hftune.train(stopped.recipe, resume=True)
    assert_same_bits(whole, resumed)
    steps = [json.loads(line) for line in (resumed.path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 9))


def test_a_run_is_not_resumed_on_another_base(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The folder that the recipe names holds other weights now."""
    base = tmp_path / "base"
    shutil.copytree(make_recipe().model.path, base)
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 4, "save_steps": 2}
    training |= {"eval_strategy": "no", "save_strategy": "steps"}
    recipe = make_recipe(training=training, method="lora", model={"path": str(base)})
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipe, callbacks=[StopAt(3)])
    stopped = Run(tmp_path / "run")
    weights = load_file(base / "model.safetensors")
    others = {name: value + 0.01 for name, value in weights.items()}
    save_file(others, base / "model.safetensors", metadata={"format": "pt"})
    before = {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()}
    with pytest.raises(HftuneError, match="began with other weights"):
        hftune.train(stopped.recipe, resume=True)
    assert before == {path: path.read_bytes() for path in before}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert hftune.train(stopped.recipe, resume=True).model_path.exists()


def test_the_best_checkpoint_is_kept(make_recipe: Callable[..., Recipe]) -> None:
    """The weights kept are those of the best evaluation, not the last."""
    run = hftune.train(make_recipe(training=RUINED_IN_THE_END, method="full"))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert best < 30
    assert run.metrics["eval_loss"] == pytest.approx(losses[best], abs=1e-6)
    kept = load_file(run.checkpoints / f"checkpoint-{best}" / "model.safetensors")
    for name, value in weights_of(run).items():
        assert torch.equal(value, kept[name])


def test_a_moved_run_still_knows_its_best_checkpoint(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"output_dir": "relative", **RUINED_IN_THE_END}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        hftune.train(make_recipe(training=training), callbacks=[StopAt(27)])
    (tmp_path / "relative").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    run = hftune.train(Run(tmp_path / "moved").recipe, resume=True)
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert min(losses) < losses[-1] - 1e-4
    assert run.metrics["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


def test_plain_libraries_give_the_runs_logits(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """A process that never imports hftune runs the very lines that the model cards print."""
    texts = ["alpha red", "two green blue one"]
    runs = {
        f"{task}-{method}": hftune.train(
            make_recipe(task, method=method, training={"output_dir": str(tmp_path / task / method)})
        )
        for task in TASKS
        for method in METHODS
    }
    program = "import sys, torch\n"
    for name, run in runs.items():
        card = (run.model_path / "README.md").read_text()
        program += (
            card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(run.model_path))
        )
        program += f"""
model.eval()
batch = tokenizer({texts}, return_tensors="pt", padding=True)
batch.pop("token_type_ids", None)
with torch.no_grad():
    torch.save(model(**batch).logits, {str(tmp_path / name)!r})
del model, tokenizer
"""
    program += 'assert not any(name.split(".")[0] == "hftune" for name in sys.modules)\n'
    subprocess.run([sys.executable, "-c", program], check=True)
    for name, run in runs.items():
        batch = run.tokenizer(texts, return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        for model in (run.model.eval(), hftune.load(run.path).model):
            with torch.no_grad():
                logits = model(**batch).logits
            torch.testing.assert_close(torch.load(tmp_path / name), logits, atol=1e-5, rtol=0)


def test_own_rows_loss_and_model(make_recipe: Callable[..., Recipe], labelled_rows: Any) -> None:
    """The Python API: a Dataset, a loss and a model of one's own."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    from hftune.losses.loss import aligned, forward

    class Brier(hftune.Loss):
        def denominator(self, batch: Any) -> torch.Tensor:
            return batch["labels"].ne(-100).sum()

        def total(self, model: Any, inputs: Any) -> Any:
            outputs = forward(model, inputs)
            logits, labels = aligned(outputs.logits, inputs["labels"], causal=self.causal)
            wanted = torch.nn.functional.one_hot(labels, logits.shape[-1])
            return ((logits.softmax(-1) - wanted) ** 2).sum(), outputs

    recipe = make_recipe(training={"max_steps": 30, "learning_rate": 1e-3})
    model = AutoModelForSequenceClassification.from_pretrained(recipe.model.path, num_labels=3)
    rows = Dataset.from_list(labelled_rows)
    run = hftune.train(recipe, train_dataset=rows, eval_dataset=rows, model=model, loss=Brier())
    assert run.model is model
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[0] == pytest.approx(2 / 3, abs=0.2)
    assert losses[-1] < losses[0] - 0.1


def test_a_folder_in_use_is_refused(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    from hftune.runs.run import locked_run_folder

    folder = tmp_path / "busy"
    with (
        locked_run_folder(folder),
        pytest.raises(HftuneError, match="in use by another run"),
        locked_run_folder(folder),
    ):
        pass
