# SPDX-License-Identifier: Apache-2.0
"""How near is a training step to what the processor can do?

    python benchmarks/ceiling.py

``hftune`` trains as a run does. ``bare`` is a loop of five lines of PyTorch that does the same work
on the same batches: the packed model, our loss, the gradient's norm clipped, a fused AdamW. What
the run takes above the loop is overhead of Trainer and hftune. ``matrices`` multiplies the matrices
of one step, forward and back, and does nothing else: the least that such a step can take. Each side
runs in a process of its own with one thread, in alternating rounds; told are CPU seconds of a step.
Goals: 3 % of overhead, and the matrices 62 % of an encoder's step and 70 % of a LoRA step of a
language model. The machine may be shared: read the ratios. A round that is kept is not run again.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from fidelity.cells import RESULTS, Cells, in_a_process
from speed import BATCH, STEPS, WARM, Clock, made
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SIDES = ("hftune", "bare", "matrices")
WORKS = {"classification": 0.62, "sft": 0.70}
OVERHEAD = 1.03

Layout = tuple[tuple[int, ...], tuple[int, ...]]


def main() -> None:
    """Measure the rounds that are missing, and say what they show; or one, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS / "ceiling.json")
    parser.add_argument("--one", nargs=2, metavar=("WORK", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"cpu_seconds_of_a_step": round(measure(*options.one), 4)}))
        return
    cells = Cells(options.results, {"batch": BATCH, "steps": STEPS, "warm": WARM, "threads": 1})
    for number in range(options.rounds):
        for work in options.works:
            for side in SIDES:
                cells.measure(
                    lambda w=work, s=side: in_a_process(__file__, w, s, ours=True),
                    work=work,
                    side=side,
                    round=number,
                )
    cells.tell({work: summary(cells, work) for work in options.works})


def measure(work: str, side: str) -> float:
    """Return the CPU seconds of a step, the mean over those after WARM."""
    torch.set_num_threads(1)
    how = {"hftune": of_a_run, "bare": of_a_loop, "matrices": of_matrices}[side]
    with (
        tempfile.TemporaryDirectory(prefix="ceiling-") as folder,
        made(work, "hftune", "demo:docstrings", folder) as trainer,
    ):
        return how(trainer)


def of_a_run(trainer: Any) -> float:
    """Train as a run does."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.spent / clock.steps


def of_a_loop(trainer: Any) -> float:
    """Do the same work in a plain loop."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    trainer.model.train()
    begun = steps = 0
    for step, batch in enumerate(first_batches(trainer)):
        if step == WARM:
            begun, steps = time.process_time(), 0
        loss, _ = trainer.loss.total(trainer.model, batch)
        (loss / trainer.loss.denominator(batch)).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return (time.process_time() - begun) / steps


def first_batches(trainer: Any) -> Any:
    """Yield the batches that a run would see."""
    return islice(trainer.get_train_dataloader(), trainer.args.max_steps)


def of_matrices(trainer: Any) -> float:
    """Multiply the matrices that a step of the usual length multiplies, and do nothing else."""
    batches = list(islice(first_batches(trainer), WARM, None))
    tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    usual = min(range(len(batches)), key=lambda number: abs(tokens[number] - mean(tokens)))
    trainer.model.train()
    with Products() as products:
        loss, _ = trainer.loss.total(trainer.model, batches[usual])
        loss.backward()
    seconds = sum(of_one(*factors) * times for factors, times in products.seen.items())
    return seconds * mean(tokens) / tokens[usual]


class Products(TorchDispatchMode):
    """Notes sizes and strides of all matrices that are multiplied, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[Layout, Layout]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the factors, and go on."""
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            one, other = args[-2:]
            self.seen[layout(one), layout(other)] += 1
        return func(*args, **(kwargs or {}))


def layout(matrix: Tensor) -> Layout:
    """Return what of a matrix decides how fast it is multiplied."""
    return tuple(matrix.shape), matrix.stride()


def of_one(one: Layout, other: Layout) -> float:
    """Return the CPU seconds of one product."""
    factors = [torch.empty_strided(*where).normal_() for where in (one, other)]
    spent = []
    for _ in range(8):
        begun = time.process_time()
        torch.mm(*factors)
        spent.append(time.process_time() - begun)
    return median(spent)


def summary(cells: Cells, work: str) -> dict[str, Any]:
    """Return medians of each side, the overhead, and the share of the matrices."""
    sides = {
        side: median(cell["cpu_seconds_of_a_step"] for cell in cells.all(work=work, side=side))
        for side in SIDES
    }
    above, share = sides["hftune"] / sides["bare"], sides["matrices"] / sides["hftune"]
    return sides | {
        "rounds": len(cells.all(work=work, side="hftune")),
        "run / loop": {"value": round(above, 3), "kept": above <= OVERHEAD},
        "matrices / run": {"value": round(share, 3), "goal": WORKS[work]},
    }


if __name__ == "__main__":
    main()
