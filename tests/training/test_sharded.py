# SPDX-License-Identifier: Apache-2.0
"""Two CPU processes with FSDP2 against one process with twice the accumulation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hftune
from hftune import Recipe
from hftune.core.errors import HftuneError
from hftune.methods import ROWS

PROCESS = Path(__file__).parent / "sharded_process.py"
LAUNCHER = {  # what `accelerate launch --config_file accelerate_configs/fsdp2.yaml` sets
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
CLASSIFICATION, GENERATION = "text-classification", "text-generation"
#: Methods are compared with SGD: AdamW blows up the rounding of a gradient that is truly zero.
SGD = {"optim": "sgd", "learning_rate": 0.1, "optim_args": "momentum=0.9"}
BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "learning_rate": 0.1}
FOUR_BIT = {
    "load_in_4bit": True,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "float32",
}
JOBS: dict[str, dict[str, Any]] = {
    "full": {"task": CLASSIFICATION, "method": "full", "training": SGD},
    "lora": {
        "task": GENERATION,
        "method": "lora",
        "training": {**BEST, "optim": "adamw_torch_fused", "learning_rate": 1e-3},
    },
    "full, language model": {"task": GENERATION, "method": "full", "training": SGD},
    "lora, classifier": {"task": CLASSIFICATION, "method": "lora", "training": SGD},
    "best full": {"task": CLASSIFICATION, "method": "full", "training": {**BEST, **SGD}},
    "head_only": {"task": CLASSIFICATION, "method": "head_only"},
    "mean pooling": {
        "task": CLASSIFICATION,
        "method": "lora",
        "model": {"classifier_pooling": "mean"},
    },
    "tied": {"task": GENERATION, "method": "full", "model": {"path": "tied"}},
    "checkpointing": {
        "task": GENERATION,
        "method": "lora",
        "training": {"activation_checkpointing": True},
    },
    "4-bit": {
        "task": GENERATION,
        "method": "lora",
        "model": {"dtype": "float32", "quantization": FOUR_BIT},
        "training": BEST,
    },
    "dora": {"task": GENERATION, "method": {"name": "lora", "use_dora": True}},
    "trainable_tokens": {
        "task": GENERATION,
        "method": {"name": "trainable_tokens", "token_indices": [5, 6]},
    },
    **{
        placement: {
            "task": task,
            "method": {"name": "bottleneck", "placement": placement, "r": 4},
            "training": SGD,
        }
        for placement, task in (
            ("houlsby", GENERATION),
            ("pfeiffer", CLASSIFICATION),
            ("parallel", CLASSIFICATION),
        )
    },
    **{
        name: {"task": GENERATION, "method": name}
        for name in ("ia3", "ln_tuning", "loha", "oft", "boft", "fourierft")
    },
    **{
        name: {
            "task": GENERATION,
            "method": "full",
            "training": {"optim": name, "learning_rate": 1e-3},
        }
        for name in ("adamw_torch", "rmsprop")
    },
}


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: Path,
    tiny_decoder: Path,
    labelled_file: Path,
    chat_file: Path,
) -> dict[str, tuple[Path, Path]]:
    """Model and rows of each task; the rows come out uneven in batches of 2 x 4."""
    folder = tmp_path_factory.mktemp("uneven")
    found = {}
    for task, model, rows in (
        (CLASSIFICATION, tiny_encoder, labelled_file),
        (GENERATION, tiny_decoder, chat_file),
    ):
        uneven = folder / f"{task}.jsonl"
        uneven.write_text("".join(rows.read_text().splitlines(keepends=True)[-22:]))
        found[task] = (model, uneven)
    return found


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: Path) -> Path:
    """A decoder whose head is its embedding."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tied")
    config = AutoConfig.from_pretrained(tiny_decoder, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_decoder).save_pretrained(folder)
    return folder


def recipe(
    job: dict[str, Any], inputs: dict[str, tuple[Path, Path]], tied: Path, output: Path
) -> dict[str, Any]:
    model, data = inputs[job["task"]]
    section = {"path": str(model), **job.get("model", {})}
    if section["path"] == "tied":
        section["path"] = str(tied)
    given = job.get("training", {})
    training = {
        "output_dir": str(output),
        "use_cpu": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        **({} if "optim" in given else SGD),  # momentum is an option of RMSprop, too
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        **given,
    }
    whole = {"path": str(data), "validation": str(data)}
    return {**job, "model": section, "data": whole, "training": training}


def train_sharded(jobs: list[dict[str, Any]], folder: Path, **settings: str) -> None:
    """Train the jobs one after the other in the same two processes."""
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc_per_node", "2", str(PROCESS), str(listed)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **LAUNCHER, **settings},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def check_equal(sharded: Path, whole: Path) -> None:
    """Compare weights, losses and the logits of the models as they load from disk."""
    one, two = (
        load_file(next((path / "model").glob("*.safetensors"))) for path in (whole, sharded)
    )
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-6, rtol=0)
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (whole, sharded)]
    for key in ("eval_loss", "train_loss", "trainable_parameters", "parameters", "train_tokens"):
        assert metrics[0][key] == pytest.approx(metrics[1][key], abs=1e-5), key
    runs = [hftune.load(path) for path in (whole, sharded)]
    batch = runs[0].tokenizer(["alpha red", "two green"], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        logits = [run.model(**batch).logits for run in runs]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)


def test_what_a_row_claims_is_compared() -> None:
    methods = {job["method"] if isinstance(job["method"], str) else job["method"]["name"]
               for job in JOBS.values()}  # fmt: skip
    assert methods == {name for name, row in ROWS.items() if row.sharded}


def interrupted(method: str, optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return a job with checkpoints, for a run that stops between them and goes on."""
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    return {"task": GENERATION, "method": method, "training": {**optimizer, **saving}}


def check_environment(folder: Path) -> None:
    """Look at what a sharded run says of its launch."""
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["processes"] == 2
    assert environment["distribution"]["type"] == "FSDP2"
    assert environment["distribution"]["layers"] == ["BertLayer"]
    assert environment["distribution"]["state_dict_type"] == "FULL_STATE_DICT"
    first = (folder / "recipe.yaml").read_text().splitlines()[0]
    assert first == "# in force: FSDP2, 2 processes, mixed precision no"


def check_resumed(straight: Path, stopped: Path) -> None:
    """Compare the bits of two runs, of which one stopped; without sharding it does not go on."""
    one, two = (
        load_file(next((path / "model").glob("*.safetensors"))) for path in (straight, stopped)
    )
    assert all(torch.equal(one[key], two[key]) for key in one.keys() | two.keys())
    unsharded = Recipe.load(stopped / "recipe.yaml")
    (stopped / "model").rename(stopped / "taken away")
    with pytest.raises(HftuneError, match="the checkpoints are of a run with FSDP2"):
        hftune.train(unsharded, resume=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # ln_tuning on RMSNorm
@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning")  # boft
@pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning")  # likewise
def test_sharded_runs_equal_whole_ones_and_resume_to_the_bit(
    inputs: dict[str, tuple[Path, Path]], tied: Path, tmp_path: Path
) -> None:
    """The step, clipping, evaluation, the best checkpoint, and the model that is left behind.

    Two processes serve all jobs, since a start costs more than most of them.
    """
    jobs = {
        name: {"recipe": recipe(job, inputs, tied, tmp_path / "two" / name)}
        for name, job in JOBS.items()
    }
    for method, optimizer in (("full", SGD), ("lora", {"optim": "adamw_torch_fused"})):
        for end, stop in (("straight", {}), ("stopped", {"stop": 3})):
            job = interrupted(method, optimizer)
            jobs[f"{method}, {end}"] = {
                "recipe": recipe(job, inputs, tied, tmp_path / f"{method}, {end}"), **stop
            }  # fmt: skip
    train_sharded(list(jobs.values()), tmp_path)
    check_environment(tmp_path / "two" / "full")
    for name, job in JOBS.items():
        alone = recipe(job, inputs, tied, tmp_path / "one" / name)
        alone["training"]["gradient_accumulation_steps"] = 2
        hftune.train(Recipe(**alone))
        check_equal(tmp_path / "two" / name, tmp_path / "one" / name)
    for method in ("full", "lora"):
        check_resumed(tmp_path / f"{method}, straight", tmp_path / f"{method}, stopped")
