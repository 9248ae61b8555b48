# SPDX-License-Identifier: Apache-2.0
"""Two CPU processes, launched as a user would, against one process with twice the accumulation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPE = """
task: {task}
model: {model}
data: {{path: {data}, validation: {data}}}
method: full
loss: {{name: cross_entropy, class_weights: balanced}}
training:
  output_dir: {output}
  per_device_train_batch_size: 4
  per_device_eval_batch_size: 4
  max_grad_norm: 0              # clipping would hide a gradient of another scale
  num_train_epochs: 2
  learning_rate: 1e-3
  optim: {optim}
"""


def launch(recipe: Path, *arguments: str) -> str:
    """Run ``hftune train`` in a process of its own and return what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "hftune", "train", str(recipe), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "task",
    [
        "text-classification",
        pytest.param("text-generation", marks=pytest.mark.slow),
        pytest.param("text2text-generation", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(
    task: str,
    tmp_path: Path,
    tiny_encoder: Path,
    tiny_decoder: Path,
    tiny_seq2seq: Path,
    labelled_file: Path,
    chat_file: Path,
    seq2seq_file: Path,
) -> None:
    """Rows that come out uneven: 58 and 38 rows in batches of 2 x 4 leave a short last group."""
    model, source = {
        "text-classification": (tiny_encoder, labelled_file),
        "text-generation": (tiny_decoder, chat_file),
        "text2text-generation": (tiny_seq2seq, seq2seq_file),
    }[task]
    data = tmp_path / "uneven.jsonl"
    data.write_text("".join(source.read_text().splitlines(keepends=True)[2:]))
    outputs = {}
    for name in ("one", "two"):
        outputs[name] = tmp_path / name
        text = RECIPE.format(task=task, model=model, data=data, output=outputs[name], optim="sgd")
        (tmp_path / f"{name}.yaml").write_text(text)
    launch(tmp_path / "one.yaml", "training.gradient_accumulation_steps=2", "training.use_cpu=true")
    said = launch(tmp_path / "two.yaml", "--accelerate", "multi_cpu")
    assert said.count("run folder:") == 1  # only rank 0 speaks
    environment = json.loads((outputs["two"] / "environment.json").read_text())
    assert environment["processes"] == 2
    one, two = (load_file(outputs[name] / "model" / "model.safetensors") for name in outputs)
    start = load_file(model / "model.safetensors")
    moved = 0.0
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-6, rtol=0)
        before = start.get(key.removeprefix("bert."))
        moved += 0.0 if before is None else float((value - before).abs().sum())
    assert moved > 0.01  # the comparison is of trained weights
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in outputs.values()]
    keys = ["eval_loss", "train_loss"]
    if task == "text2text-generation":  # texts of ragged lengths, gathered from both
        keys += ["eval_chrf", "eval_rouge1", "eval_length_ratio"]
        assert (outputs["one"] / "samples.jsonl").read_text() == (
            outputs["two"] / "samples.jsonl"
        ).read_text()
    for key in keys:
        assert metrics[0][key] == pytest.approx(metrics[1][key], abs=1e-5)
    if task == "text-classification":
        support = sum(row["support"] for row in metrics[1]["eval_per_class"].values())
        assert support == 58


@pytest.mark.slow
def test_two_processes_share_a_stream(tmp_path: Path, tiny_decoder: Path, chat_file: Path) -> None:
    """An odd number of optimizer groups to the epoch: the stream begins again inside a group."""
    outputs = {name: tmp_path / name for name in ("one", "two")}
    for name, output in outputs.items():
        text = RECIPE.format(
            task="text-generation", model=tiny_decoder, data=chat_file, output=output, optim="sgd"
        )
        text = text.replace("loss: {name: cross_entropy, class_weights: balanced}\n", "")
        (tmp_path / f"{name}.yaml").write_text(text)
    stream = ["data.streaming=true", "data.shuffle_buffer_size=8", "training.max_steps=9"]
    launch(
        tmp_path / "one.yaml",
        "training.gradient_accumulation_steps=2",
        "training.use_cpu=true",
        *stream,
    )
    launch(tmp_path / "two.yaml", "--accelerate", "multi_cpu", *stream)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in outputs.values())
    start = load_file(tiny_decoder / "model.safetensors")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-6, rtol=0)
    assert sum(float((value - start[key]).abs().sum()) for key, value in one.items()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["l0", "l1"])
def test_diff_pruning_in_two_processes(
    mode: str, tmp_path: Path, tiny_encoder: Path, labelled_file: Path
) -> None:
    """Without noise, that is with l1, the same weights are kept as in one process."""
    stored = {}
    for name in ("one", "two"):
        output = tmp_path / name
        text = RECIPE.format(
            task="text-classification", model=tiny_encoder, data=labelled_file, output=output,
            optim="adamw_torch",
        )  # fmt: skip
        method = f"{{name: diff_pruning, mode: {mode}, target_sparsity: 0.95}}"
        (tmp_path / f"{name}.yaml").write_text(text.replace("method: full", f"method: {method}"))
    one = ("training.gradient_accumulation_steps=2", "training.use_cpu=true")
    for name, arguments in (("one", one), ("two", ("--accelerate", "multi_cpu"))):
        launch(tmp_path / f"{name}.yaml", *arguments)
        stored[name] = load_file(tmp_path / name / "model" / "adapter_model.safetensors")
    assert stored["one"].keys() == stored["two"].keys()
    if mode == "l1":
        for key, value in stored["one"].items():
            torch.testing.assert_close(stored["two"][key], value, atol=1e-4, rtol=1e-3)
