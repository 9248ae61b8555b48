# SPDX-License-Identifier: Apache-2.0
"""Compare the estimate of memory with the memory that training steps take.

    python benchmarks/memory.py

Each case trains two steps of its own recipe in a child process on the CPU, with one thread. The
child counts every byte that PyTorch allocates and frees, also inside of operators, and so finds the
peak of live tensors. With ``--resident`` another child trains without counting, and the kernel
tells the peak of its resident memory: the difference to before training, plus the weights. That
peak is higher, since the allocator of the C library keeps pages that it cannot return. The file of
results is written after every case, and what is there is not run again.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "memory.json"
MIB = 2**20
#: The optimizer's state is there from the second step on.
STEPS = 2
TEXT = "the quick invoice of a slow ticket runs over every old account page again"
WORDS = tuple(TEXT.split())
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {"task": "text-classification", "model": "demo:minilm", "batch": 16},
    "smollm2": {"task": "text-generation", "model": "demo:smollm2", "batch": 4},
}
#: What differs between the cases; a loss that compares two draws of dropout needs some.
CASES: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "bitfit": {"method": "bitfit"},
    "head_only": {"method": "head_only"},
    "diff_pruning": {"method": {"name": "diff_pruning", "projection_ratio": 1.0}},
    "r_drop": {"method": "lora", "loss": "r_drop", "regularization": {"attention_dropout": 0.1}},
    "mixup": {"method": "full", "loss": "mixup"},
    "sam": {"method": "full", "regularization": {"sam": 0.05}},
    "adversarial": {"method": "lora", "regularization": {"adversarial": 1.0}},
    "distillation": {"method": "lora", "distillation": {"cache": False}},
}
#: Cases that a model has not: mixup and head_only are for classifiers, and Llama has no biases.
SKIPPED = {("smollm2", "mixup"), ("smollm2", "head_only"), ("smollm2", "bitfit")}


def main() -> None:
    """Run the cases that are missing, and print all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--resident", action="store_true", help="measure resident memory, too")
    asked = parser.parse_args()
    for model in asked.models:
        for case in asked.cases:
            for how in ("live", "resident")[: 1 + asked.resident]:
                known = read_results().get(f"{model} {case}", {})
                if how not in known and (model, case) not in SKIPPED:
                    found = measure(how, model, case)
                    results = read_results()  # others may have written meanwhile
                    results[f"{model} {case}"] = {**known, **found}
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    table(read_results())


def read_results() -> dict[str, dict[str, float]]:
    """Return the figures that are there already."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def measure(how: str, model: str, case: str) -> dict[str, float]:
    """Return the figures of a case, out of a child process."""
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [sys.executable, __file__, how, model, case, folder],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[str, float]]) -> None:
    """Print the estimates in MiB beside the peaks."""
    print(f"{'':24}{'estimate':>10}{'live':>10}{'ratio':>7}{'resident':>10}{'ratio':>7}")
    for name, row in results.items():
        peaks = [row[how] for how in ("live", "resident") if how in row]
        columns = (f"{peak:10,.0f}{row['estimate'] / peak:7.2f}" for peak in peaks)
        print(f"{name:24}{row['estimate']:10,.0f}{''.join(columns)}")


def write_rows(folder: Path, task: str) -> Path:
    """Write 64 rows of 120 words, so that activations fill the memory."""
    path = folder / f"{task}.jsonl"
    lines = []
    for row in range(64):
        text = " ".join(WORDS[(row + 3 * place) % len(WORDS)] for place in range(120))
        label = {"label": "bill" if row % 2 else "tech"} if task == "text-classification" else {}
        lines.append(json.dumps({"text": text, **label}))
    path.write_text("\n".join(lines))
    return path


def recipe_of(model: str, case: str, folder: Path) -> Any:
    """Return the recipe of a case."""
    import hftune

    base, given = MODELS[model], dict(CASES[case])
    training = {
        "output_dir": str(folder / "run"), "use_cpu": True, "max_steps": STEPS,
        "per_device_train_batch_size": base["batch"], "save_strategy": "no", "eval_strategy": "no",
    }  # fmt: skip
    common = {
        "task": base["task"],
        "model": base["model"],
        "data": {"path": str(write_rows(folder, base["task"])), "validation_size": 0,
                 "max_length": 128},
    }  # fmt: skip
    if "distillation" in given:
        given["distillation"] = {**given["distillation"], "teacher": teacher(model, common, folder)}
    return hftune.Recipe(**common, **given, training=training)


def teacher(model: str, common: dict[str, Any], folder: Path) -> str:
    """Return a teacher of the same size: the model itself, or a run of one step."""
    import hftune

    if model == "smollm2":
        return str(common["model"])
    place = folder / "teacher"
    if not place.exists():
        training = {"output_dir": str(place), "use_cpu": True, "max_steps": 1,
                    "save_strategy": "no", "eval_strategy": "no"}  # fmt: skip
        hftune.train(hftune.Recipe(**common, method="full", training=training))
    return str(place)


def peak_of_live_tensors(act: Callable[[], object], held: Iterable[Any]) -> int:
    """Return the most bytes that tensors hold at a time while ``act`` runs.

    Args:
        act: Runs on the CPU; what it allocates is counted, also inside of operators.
        held: Tensors that are there before.
    """
    from torch.profiler import ProfilerActivity, profile

    storages = [tensor.untyped_storage() for tensor in held]
    present = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    gc.collect()  # what is freed during the count must have been allocated in it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    result: Any = profiler.profiler
    events = [event for event in result.kineto_results.events() if event.name() == "[memory]"]
    peak = live = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return int(present + peak)


def held_by(trainer: Any) -> list[Any]:
    """Return the tensors that a run holds before its first step: of its model and of others."""
    from torch import nn

    teacher = getattr(trainer.loss, "teacher", None)
    modules = [trainer.model, *getattr(teacher, "models", ())]
    modules += [one for one in vars(trainer.averaging or object).values()
                if isinstance(one, nn.Module)]  # fmt: skip
    tensors = [tensor for one in modules for tensor in (*one.parameters(), *one.buffers())]
    return tensors + ([] if trainer.penalty is None else list(trainer.penalty.start.values()))


def child(how: str, model: str, case: str, folder: Path) -> dict[str, Any]:
    """Train a case and return its figures in MiB."""
    from hftune.training.build import build_trainer
    from hftune.training.load_model import load_model
    from hftune.training.memory.memory_report import plan_memory
    from hftune.training.plan.prepare import prepare
    from hftune.training.speedups import without_padding

    plan = prepare(recipe_of(model, case, folder))
    estimate = plan_memory(plan)
    trainer = build_trainer(plan, load_model(plan))
    held = held_by(trainer)

    def train() -> None:
        with without_padding(plan, trainer):
            trainer.train()

    if how == "live":
        assert estimate is not None
        names = ("weights", "gradients", "optimizer", "activations", "logits")
        parts = {name: round(getattr(estimate, name) / MIB, 1) for name in names}
        live = peak_of_live_tensors(train, held)
        return {"estimate": round(estimate.total / MIB, 1), **parts, "live": round(live / MIB, 1)}
    before = resident_now()
    train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum({t.data_ptr(): t.nbytes for t in held}.values())
    return {"resident": round((peak - before + weights) / MIB, 1)}


def resident_now() -> int:
    """Return the bytes of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] in ("live", "resident"):
        print(json.dumps(child(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
    else:
        main()
