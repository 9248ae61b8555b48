# SPDX-License-Identifier: Apache-2.0
"""Two CPU processes, launched as a user would, against one process with twice the accumulation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import hftune
from hftune.core.shipped import accelerate_config
from hftune.methods import ROWS
from tests.conformance.cases import options_of
from tests.conformance.runs import task_of
from tests.training.loss_cases import Bench, all_cases, kind_recipes
from tests.training.several_processes import GRADIENTS

PROCESS = Path(__file__).parent / "several_processes.py"
COLOURS = ("red", "green", "blue")
BALANCED = {"name": "cross_entropy", "class_weights": "balanced"}
MULTI_LABEL = {"name": "bce_with_logits", "pos_weight": "balanced"}
PRUNE = {"name": "prune", "importance": "taylor", "schedule": "cubic", "begin_step": 2,
         "end_step": 8, "frequency": 3, "sparsity": 0.7}  # fmt: skip
STREAM = {"streaming": True, "shuffle_buffer_size": 8}
RELORA = {
    "name": "relora", "r": 2, "warm_start_steps": 2, "merge_every": 3, "rewarm_steps": 1,
}  # fmt: skip

#: Name -> task, loss, and what else the recipe says.
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "text-generation": ("text-generation", BALANCED, {}),
    "text2text-generation": ("text2text-generation", BALANCED, {}),
    "token-classification": ("token-classification", BALANCED, {}),
    "multi-label": ("text-classification", MULTI_LABEL, {}),
    "regression": ("text-classification", {"name": "huber", "delta": 0.5}, {}),
    "prune": ("text-classification", BALANCED, {"method": PRUNE}),
    # The head trains alone, the top layer after 3 steps, the lower one after 6; both recomputed.
    "unfreezing": (
        "text-classification",
        BALANCED,
        {
            "method": {"name": "freeze", "unfreeze_every": 3},
            "training": {"activation_checkpointing": True},
        },
    ),
    # Every weight trains for two steps; LoRA is merged and drawn anew after the fifth.
    "relora": ("text-classification", BALANCED, {"method": RELORA}),
    # Every gradient twice, over two micro-batches of each process; noise that all draw alike.
    "sam": (
        "text-classification",
        BALANCED,
        {
            "regularization": {"sam": 0.1, "gradient_noise": 1e-3},
            "training": {"gradient_accumulation_steps": 2},
        },
    ),
    "weight-noise": ("text-classification", BALANCED, {"regularization": {"weight_noise": 0.01}}),
    # Rows drawn with replacement: 58 of 58, of which two processes have 29 each.
    "balanced": ("text-classification", "cross_entropy", {"data": {"sampling": "balanced"}}),
    "oversample": ("text-classification", "focal", {"data": {"sampling": "oversample"}}),
    "curriculum": (
        "text-classification",
        BALANCED,
        {"data": {"curriculum": {"name": "rarity", "pacing": "root"}}},
    ),
    # The first process judges for both; stages end where the metric that both know stands still.
    "curriculum by loss": (
        "text-generation",
        "cross_entropy",
        {
            "data": {
                "curriculum": {
                    "name": "loss",
                    "pacing": "staged",
                    "stages": 4,
                    "advance": "plateau",
                    "patience": 1,
                }
            },
            "training": {"num_train_epochs": 4, "learning_rate": 1e-1},
        },
    ),
    "initialization": (
        "text-classification",
        BALANCED,
        {"initialization": {"name": "lsuv", "reinit_top_layers": 1}},
    ),
    # Counted once a step, however many processes and micro-batches share it.
    "penalties": (
        "text-classification",
        BALANCED,
        {"regularization": {"l1": 1e-4, "l2": 1e-3, "l2_sp": 1e-1}},
    ),
    # The teacher is the model itself, as it was.
    "distillation": ("text-generation", BALANCED, {"distillation": {"top_k": 12}}),
    "mean teacher": (
        "text-classification",
        "cross_entropy",
        {
            "distillation": {"teacher": "weight_averaging", "warmup_steps": 0.5},
            "regularization": {"weight_averaging": {"name": "ema", "decay": 0.8}},
        },
    ),
    "adversarial": ("text-classification", BALANCED, {"regularization": {"adversarial": 1.0}}),
    # Through layers of their own, which both processes train.
    "wide teacher": (
        "text-classification",
        "cross_entropy",
        {
            "distillation": {"hidden_states": {1: 1, 2: 2}, "hidden_states_weight": 10.0},
            "training": {"learning_rate": 1e-1},
        },
    ),
    # Each process has batches of its own, of equally many tokens.
    "token budget": (
        "text-classification",
        BALANCED,
        {"data": {"token_budget": 60}, "training": {"per_device_train_batch_size": None}},
    ),
    # Run once by the first process, and looked up by both; one process alone runs it in every step.
    "frozen layer kept": (
        "text-classification",
        BALANCED,
        {
            "method": {"name": "freeze", "freeze_layers": 0},
            "data": {"cache_trunk": True},
            "evaluation": {"gap": True},
        },
    ),
    # An odd number of optimizer groups to the epoch: the stream begins again inside a group.
    "stream": ("text-generation", "cross_entropy", {"data": STREAM, "training": {"max_steps": 9}}),
}


@pytest.fixture(scope="module")
def models(tiny_encoder: Path, tiny_decoder: Path, tiny_seq2seq: Path) -> dict[str, Path]:
    """The model of each task."""
    return {
        "text-classification": tiny_encoder,
        "token-classification": tiny_encoder,
        "text-generation": tiny_decoder,
        "text2text-generation": tiny_seq2seq,
    }


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> dict[str, Path]:
    """A case's teacher where it is not its model."""
    folder = tmp_path_factory.mktemp("teachers") / "wide"
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    names = dict(enumerate(sorted(COLOURS)))
    config = AutoConfig.from_pretrained(tiny_encoder, hidden_size=64, id2label=names)
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return {"wide teacher": folder}


@pytest.fixture(scope="module")
def rows(
    tmp_path_factory: pytest.TempPathFactory,
    labelled_rows: list[dict[str, str]],
    labelled_file: Path,
    tagged_file: Path,
    chat_file: Path,
    seq2seq_file: Path,
) -> dict[str, Path]:
    """The rows of each case: 58, 38 and, streamed, 40 in batches of 2 x 4."""
    folder = tmp_path_factory.mktemp("uneven")
    texts = [row["text"] for row in labelled_rows]
    labels = {
        "multi-label": [[c for c in (*COLOURS, "alpha") if c in text.split()] for text in texts],
        "regression": [len(text) / 10 for text in texts],
    }
    lines = {
        name: [json.dumps({"text": t, "label": v}) for t, v in zip(texts, values, strict=True)]
        for name, values in labels.items()
    } | {
        name: path.read_text().splitlines()
        for name, path in (
            ("text-classification", labelled_file),
            ("unfreezing", labelled_file),
            ("token-classification", tagged_file),
            ("text-generation", chat_file),
            ("text2text-generation", seq2seq_file),
        )
    }
    for name, written in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(written[2:]))
    found = {name: folder / f"{name}.jsonl" for name in lines}
    labelled = found["text-classification"]
    classified = [name for name, (task, _, _) in CASES.items() if task == "text-classification"]
    chats = {"stream": chat_file}
    chats |= dict.fromkeys(("curriculum by loss", "distillation"), found["text-generation"])
    return {**dict.fromkeys(classified, labelled), **chats, **found}


def recipe(
    task: str,
    loss: Any,
    model: Path,
    data: Path,
    output: Path,
    more: dict[str, Any],
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Return the sections of a recipe for SGD without clipping, which would hide another scale."""
    training = {
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_grad_norm": 0,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "optim": "sgd",
        **more.get("training", {}),
    }
    training = {key: value for key, value in training.items() if value is not None}
    return {
        "task": task,
        "model": {"path": str(model)},
        "data": {"path": str(data), "validation": str(data), **more.get("data", {})},
        "method": more.get("method", "full"),
        "loss": loss,
        **({"distillation": {"teacher": str(teacher or model), **more["distillation"]}}
           if "distillation" in more else {}),
        "training": training,
        **{name: more[name] for name in ("initialization", "regularization", "evaluation")
           if name in more},
    }  # fmt: skip


def train_alone(sections: dict[str, Any]) -> None:
    """Train in this process with twice the accumulation, and no layer left out."""
    groups = 2 * sections["training"].get("gradient_accumulation_steps", 1)
    training = {**sections["training"], "gradient_accumulation_steps": groups, "use_cpu": True}
    data = {**sections["data"], "cache_trunk": False}
    hftune.train(hftune.Recipe(**{**sections, "training": training, "data": data}))


def start(*command: str) -> str:
    """Run a command and return what it said."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def check_equal(one: Path, two: Path, model: Path) -> None:
    """Compare weights, which must have moved, and every figure of the evaluation."""
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    alone, shared = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    before = load_file(model / "model.safetensors")
    moved = 0.0
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, atol=1e-6, rtol=0)
        at_first = before.get(key.removeprefix("bert."))
        moved += 0.0 if at_first is None else float((value - at_first).abs().sum())
    assert moved > 0.01  # the comparison is of trained weights
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    names = [name for name in metrics[0] if name.startswith("eval_") and not speed(name)]
    assert "eval_loss" in names
    for name in ("train_loss", *names):
        if isinstance(metrics[0][name], dict):
            for row, figures in metrics[0][name].items():
                assert metrics[1][name][row] == pytest.approx(figures, abs=1e-5), (name, row)
        else:
            assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-5), name


def check_gradients(kinds: dict[str, Any], shared: dict[str, torch.Tensor]) -> None:
    """Compare every loss's gradient with that of one process, in float64."""
    benches = {kind: Bench(sections) for kind, sections in kinds.items()}
    cases = all_cases()
    assert shared.keys() == {str(case) for case in cases}
    for case in cases:
        here = benches[case.kind]
        alone = here.gradient(here.loss(case), [len(here.rows)])
        torch.testing.assert_close(shared[str(case)], alone, atol=1e-10, rtol=0, msg=str(case))


def speed(name: str) -> bool:
    """Tell whether a figure is of the clock."""
    return name.endswith(("_runtime", "_per_second", "_time"))


def test_two_processes_equal_one(
    models: dict[str, Path], rows: dict[str, Path], tmp_path: Path
) -> None:
    """As ``hftune train --accelerate multi_cpu``."""
    task = "text-classification"
    one, two = (
        recipe(task, BALANCED, models[task], rows[task], tmp_path / name, {})
        for name in ("one", "two")
    )
    train_alone(one)
    with (tmp_path / "two.yaml").open("w") as file:
        YAML().dump(two, file)
    given = [str(tmp_path / "two.yaml"), "--accelerate", "multi_cpu"]
    said = start(sys.executable, "-m", "hftune", "train", *given)
    assert said.count("run folder:") == 1  # only rank 0 speaks
    check_equal(tmp_path / "one", tmp_path / "two", models[task])
    per_class = json.loads((tmp_path / "two" / "metrics.json").read_text())["eval_per_class"]
    assert sum(row["support"] for row in per_class.values()) == 58


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_equal_one_in_every_task(
    models: dict[str, Path], rows: dict[str, Path], teachers: dict[str, Path], tmp_path: Path
) -> None:
    """Two processes serve all cases, one after the other, as a script of one's own does."""
    recipes = {
        number: {
            name: recipe(
                task,
                loss,
                models[task],
                rows[name],
                tmp_path / number / name,
                more,
                teachers.get(name),
            )
            for name, (task, loss, more) in CASES.items()
        }
        for number in ("one", "two")
    }
    listed = tmp_path / "recipes.json"
    listed.write_text(json.dumps(list(recipes["two"].values())))
    config = str(accelerate_config("multi_cpu"))
    accelerate = str(Path(sys.executable).parent / "accelerate")
    kinds = kind_recipes(tmp_path, models, rows)
    (tmp_path / "kinds.json").write_text(json.dumps(kinds))
    given = [str(listed), str(tmp_path / "kinds.json")]
    start(accelerate, "launch", "--config_file", config, str(PROCESS), *given)
    check_gradients(kinds, load_file(tmp_path / GRADIENTS))
    for name, (task, _, _) in CASES.items():
        train_alone(recipes["one"][name])
        check_equal(tmp_path / "one" / name, tmp_path / "two" / name, models[task])
    samples = [
        (tmp_path / number / "text2text-generation" / "samples.jsonl").read_text()
        for number in ("one", "two")
    ]
    assert samples[0] == samples[1]  # texts of ragged lengths, gathered from both


@pytest.mark.slow
def test_diff_pruning_in_two_processes(
    models: dict[str, Path], rows: dict[str, Path], tmp_path: Path
) -> None:
    """Without noise, that is with l1, the same weights are kept as in one process."""
    task = "text-classification"
    method = {"name": "diff_pruning", "mode": "l1", "target_sparsity": 0.95}
    stored = {}
    for name in ("one", "two"):
        more = {"training": {"optim": "adamw_torch"}}
        sections = recipe(task, BALANCED, models[task], rows[task], tmp_path / name, more)
        sections["method"] = method
        if name == "one":
            train_alone(sections)
        else:
            with (tmp_path / "two.yaml").open("w") as file:
                YAML().dump(sections, file)
            given = [str(tmp_path / "two.yaml"), "--accelerate", "multi_cpu"]
            start(sys.executable, "-m", "hftune", "train", *given)
        stored[name] = load_file(tmp_path / name / "model" / "adapter_model.safetensors")
    assert stored["one"].keys() == stored["two"].keys()
    for key, value in stored["one"].items():
        torch.testing.assert_close(stored["two"][key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
def test_two_processes_equal_one_in_every_method(
    models: dict[str, Path], rows: dict[str, Path], tmp_path: Path
) -> None:
    """Two processes serve all methods; those that draw noise train the same parameters at least."""
    names = [name for name, row in ROWS.items() if not row.fitted]
    recipes: dict[str, dict[str, dict[str, Any]]] = {"one": {}, "two": {}}
    for number, sections in recipes.items():
        for name in names:
            task = task_of(name)
            more = {
                "method": {"name": name, **options_of(name)},
                "data": {"validation": None, "validation_size": 0},
                "training": {"max_steps": 4, "learning_rate": 0.05, "save_strategy": "no"},
            }
            output = tmp_path / number / name
            sections[name] = recipe(task, BALANCED, models[task], rows[task], output, more)
    listed = tmp_path / "recipes.json"
    listed.write_text(json.dumps(list(recipes["two"].values())))
    config = str(accelerate_config("multi_cpu"))
    accelerate = str(Path(sys.executable).parent / "accelerate")
    start(accelerate, "launch", "--config_file", config, str(PROCESS), str(listed))
    wrong: dict[str, list[str]] = {}
    file = {True: "adapter_model.safetensors", False: "model.safetensors"}
    for name in names:
        train_alone(recipes["one"][name])
        alone, shared = (
            load_file(tmp_path / number / name / "model" / file[ROWS[name].needs_base])
            for number in recipes
        )
        assert alone.keys() == shared.keys(), name
        far = [
            key
            for key, value in alone.items()
            if not shared[key].isfinite().all()
            or not (ROWS[name].draws or torch.allclose(shared[key], value, atol=2e-5, rtol=1e-4))
        ]
        wrong |= {name: far} if far else {}
    assert wrong == {}


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_a_later_epoch(
    models: dict[str, Path], rows: dict[str, Path], tmp_path: Path
) -> None:
    """The second epoch's order, not the first one's, behind the batches that are skipped."""
    names = ["balanced", "token budget"]
    steps = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 0.45,
             "save_total_limit": 9, "load_best_model_at_end": False}  # fmt: skip
    whole = []
    for name in names:
        task, loss, more = CASES[name]
        more = {**more, "training": {**more.get("training", {}), **steps}}
        place = tmp_path / "whole" / name
        whole.append(recipe(task, loss, models[task], rows[name], place, more))
    listed = tmp_path / "recipes.json"
    accelerate = str(Path(sys.executable).parent / "accelerate")
    config = str(accelerate_config("multi_cpu"))
    launch = [accelerate, "launch", "--config_file", config, str(PROCESS), str(listed)]
    listed.write_text(json.dumps(whole))
    start(*launch)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for name in names:
        shutil.rmtree(tmp_path / "stopped" / name / "model")
        checkpoints = list((tmp_path / "stopped" / name / "checkpoints").glob("checkpoint-*"))
        first, *later = sorted(checkpoints, key=lambda folder: int(folder.name[11:]))
        for folder in later:
            shutil.rmtree(folder)
        assert 1 < json.loads((first / "trainer_state.json").read_text())["epoch"] < 2
    listed.write_text(json.dumps([str(tmp_path / "stopped" / name) for name in names]))
    start(*launch)
    for name in names:
        ends = [
            load_file(tmp_path / run / name / "model" / "model.safetensors")
            for run in ("whole", "stopped")
        ]
        assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items()), name
