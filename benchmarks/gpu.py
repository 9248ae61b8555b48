# SPDX-License-Identifier: Apache-2.0
"""How fast does a GPU train, against plain Trainer and TRL with their best flags?

    python benchmarks/gpu.py                        # every work and side, three rounds, on a GPU
    python benchmarks/gpu.py --works llama_1b_full --sides trainer hftune
    python benchmarks/gpu.py --smoke                # a tiny model on a CPU: tries the script alone

A model of Llama's shape with 1.2 billion random weights, and SmolLM2-135M; all weights and LoRA;
bf16 autocast over float32 weights, fused AdamW, tf32. Rows are 512 tokens long on average, 2,048 at
most, and the same for all sides, which do the same steps, each in a process of its own:

- ``trainer``: ``transformers.Trainer`` with ``group_by_length``, and flash-attn and liger kernels
  where they are installed.
- ``trl``: ``trl.SFTTrainer`` with packing, and the same packages.
- ``hftune``: what a recipe does that says nothing of all this.

Told are tokens a second after WARM steps (no padding counted), the most memory that torch held, and
the share of the GPU's matrix rate: the operations of the model at these rows, by the rate of
``torch.mm`` at the model's own shapes, measured in the same process. Targets: ahead of both, and
above 0.45 in full fine-tuning of the large model. It has not been run on a GPU yet.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from fidelity.cells import RESULTS, Cell, Cells
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

SIDES = ("trainer", "trl", "hftune")
WORKS = ("llama_1b_full", "llama_1b_lora", "smollm2_full", "smollm2_lora")
WARM, STEPS, BATCH, MAX_LENGTH = 5, 30, 8, 2048
MEAN_LENGTH, ROWS = 512, 400
SHARE_TARGET = 0.45
#: Llama 3.2 1B's shape; SmolLM2's tokenizer has fewer tokens than the vocabulary.
LLAMA_1B = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": MAX_LENGTH, "tie_word_embeddings": True}  # fmt: skip
TINY = {**LLAMA_1B, "vocab_size": 49152, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def main() -> None:
    """Measure the rounds that are missing; or one, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model, three steps, any device"
    )
    parser.add_argument("--one", nargs=2, metavar=("WORK", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU; --smoke tries the script without one")
    if options.one:
        print(json.dumps(measure(*options.one, smoke=options.smoke)))
        return
    if options.smoke:
        for work in options.works:
            for side in options.sides:
                if side != "trl" or find_spec("trl"):
                    print(work, side, json.dumps(measure(work, side, smoke=True)))
        return
    settings = {"batch": BATCH, "steps": STEPS, "max_length": MAX_LENGTH, "mean": MEAN_LENGTH,
                "gpu": torch.cuda.get_device_name(), "packages": best_packages()}  # fmt: skip
    cells = Cells(options.results, settings)
    for number in range(options.rounds):
        for work in options.works:
            for side in options.sides:
                cells.measure(
                    lambda w=work, s=side: in_a_process(w, s), work=work, side=side, round=number
                )
    cells.tell(summary(cells))


def best_packages() -> list[str]:
    """Return what of the others' best flags is installed."""
    return [name for name in ("trl", "flash_attn", "liger_kernel") if find_spec(name)]


def in_a_process(work: str, side: str) -> Cell:
    """Return what a process of its own measures."""
    command = [sys.executable, __file__, "--one", work, side]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cell: Cell = json.loads(output.splitlines()[-1])
    return cell


def measure(work: str, side: str, *, smoke: bool) -> Cell:
    """Train and return tokens a second, the most memory, and the share of the matrix rate."""
    from hftune.training.build import build_trainer
    from hftune.training.load_model import LoadedModel, load_model
    from hftune.training.plan.prepare import prepare
    from hftune.training.speedups import without_padding

    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        plan = prepare(recipe(work, side, Path(folder), smoke), train_dataset=texts(smoke))
        model = load_model(plan).model
        clock = Clock(plan.settings.arguments.device)
        if side == "hftune":
            trainer: Any = build_trainer(plan, LoadedModel(model), [clock])
            trainer.data_collator = clock.counting(trainer.data_collator)
            with without_padding(plan, trainer):
                trainer.train()
        else:
            make = plain_trainer if side == "trainer" else trl_trainer
            trainer = make(plan, model, clock)
            trainer.data_collator = clock.counting(trainer.data_collator)
            trainer.train()
    rate = matrix_rate(plan.pretrained.config, plan.settings.arguments.device)
    needed = operations(
        trainer.model, plan.pretrained.config, clock.lengths, full=work.endswith("full")
    )
    return {
        "tokens_per_second": round(clock.tokens / clock.spent, 1),
        "peak_gibibytes": round(clock.memory() / 2**30, 2),
        "matrix_teraflops": round(rate / 1e12, 2),
        "share_of_matrix_rate": round(needed / clock.spent / rate, 3),
    }


def recipe(work: str, side: str, folder: Path, smoke: bool) -> Any:
    """Return what all sides train."""
    import hftune
    from hftune.models.demo_models import demo_model_path

    path = "demo:smollm2"
    if smoke or work.startswith("llama"):
        path = str(folder / "model")
        save_random(folder / "model", TINY if smoke else LLAMA_1B, demo_model_path("smollm2"))
    plain = {"train_sampling_strategy": "group_by_length"} if side == "trainer" else {}
    flash = {"attn_implementation": "flash_attention_2"} if "flash_attn" in best_packages() else {}
    return hftune.Recipe(
        task="text-generation",
        model={"path": path, "dtype": "float32", **({} if side == "hftune" else flash)},
        data={"columns": {"prompt": "prompt", "completion": "completion"},
              "validation_size": 0, "max_length": MAX_LENGTH // (16 if smoke else 1)},
        method="full" if work.endswith("full") else {"name": "lora", **LORA},
        training={
            "output_dir": str(folder / "run"),
            "max_steps": 3 if smoke else WARM + STEPS,
            "per_device_train_batch_size": 2 if smoke else BATCH,
            "save_strategy": "no",
            "learning_rate": 1e-5,
            **plain,
        },
    )  # fmt: skip


def save_random(folder: Path, shape: dict[str, Any], tokenizer: Path) -> None:
    """Write a model with random weights and SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape))
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def texts(smoke: bool) -> Dataset:
    """Return rows whose lengths spread as those of chats do: most are short, a few fill the limit.

    The words are common English ones, each about a token.
    """
    generator = np.random.default_rng(0)
    scale = 16 if smoke else 1
    lengths = np.exp(generator.normal(np.log(MEAN_LENGTH / scale) - 0.32, 0.8, ROWS // scale))
    words = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be"]
    rows = [" ".join(generator.choice(words, max(int(n), 4))) for n in lengths]
    return Dataset.from_dict({"prompt": ["Go on:"] * len(rows), "completion": rows})


def plain_trainer(plan: Any, model: Any, clock: "Clock") -> Trainer:
    """Return ``transformers.Trainer`` on the same rows, padded to the longest of a batch."""
    arguments: TrainingArguments = plan.settings.arguments
    arguments.use_liger_kernel = "liger_kernel" in best_packages()
    kept = ("input_ids", "attention_mask", "labels")
    columns = [column for column in plan.splits.train.dataset.column_names if column not in kept]
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=plan.splits.train.dataset.remove_columns(columns),
        data_collator=plan.objective.task.collator(plan.pretrained.processor, model),
        callbacks=[clock],
    )


def trl_trainer(plan: Any, model: Any, clock: "Clock") -> Any:
    """Return TRL's Trainer with packing, whose batches hold as many tokens as the others'."""
    from trl import SFTConfig, SFTTrainer

    arguments: TrainingArguments = plan.settings.arguments
    same = ("output_dir", "max_steps", "learning_rate", "bf16", "tf32", "use_cpu", "seed")
    config = SFTConfig(
        **{name: getattr(arguments, name) for name in same},
        per_device_train_batch_size=max(BATCH * MEAN_LENGTH // MAX_LENGTH, 1),
        max_length=plan.pretrained.max_length,
        packing=True,
        use_liger_kernel="liger_kernel" in best_packages(),
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
    )
    rows = plan.splits.train.dataset.select_columns(["input_ids", "labels"])
    return SFTTrainer(model=model, args=config, train_dataset=rows, callbacks=[clock],
                      processing_class=plan.pretrained.processor)  # fmt: skip


class Clock(TrainerCallback):
    """Counts seconds, real tokens and row lengths of the steps after the first ones."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.begun, self.spent = device, 0.0, 0.0
        self.begun_at = self.steps = 0
        self.batches: list[list[int]] = []

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row of the timed steps."""
        timed = self.batches[self.begun_at : self.begun_at + self.steps]
        return [length for batch in timed for length in batch]

    @property
    def tokens(self) -> int:
        """Real tokens of the timed steps."""
        return sum(self.lengths)

    def counting(self, collate: Any) -> Any:
        """Return a collator that notes the length of each row of a batch."""

        def noted(rows: Any) -> Any:
            batch = collate(rows)
            if "attention_mask" in batch:
                lengths = batch["attention_mask"].sum(1).tolist()
            else:  # packed rows begin where positions do
                starts = (batch["position_ids"].flatten() == 0).nonzero()[:, 0].tolist()
                lengths = np.diff([*starts, batch["position_ids"].numel()]).tolist()
            self.batches.append(lengths)
            return batch

        return noted

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin after the first steps, and note each step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if state.global_step == min(WARM, args.max_steps - 2):
            self.begun_at, self.begun = state.global_step, time.perf_counter()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        elif self.begun:
            self.spent = time.perf_counter() - self.begun
            self.steps = state.global_step - self.begun_at

    def memory(self) -> int:
        """Return the most bytes that torch held on a GPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0


def operations(model: Any, config: Any, lengths: list[int], *, full: bool) -> int:
    """Return the multiplications and additions of the steps: matrices, head and causal attention.

    Two for each weight and token on the way forward, as many for the gradient of what comes in,
    and as many for that of the weights where they train. Nothing for what is recomputed.
    """
    linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear))
    weights = sum(m.weight.numel() for m in linear)  # the head is one; LoRA's are counted as well
    attention = sum(2 * n * n for n in lengths) * config.hidden_size * config.num_hidden_layers
    return (6 if full else 4) * weights * sum(lengths) + 3 * attention


def matrix_rate(config: Any, device: torch.device) -> float:
    """Return the operations a second of ``torch.mm`` in bfloat16 at the model's own shapes."""
    width, inner = config.hidden_size, config.intermediate_size
    rows = BATCH * MEAN_LENGTH if device.type == "cuda" else 64
    shapes = [(rows, width, width), (rows, width, inner), (rows, inner, width)]
    spent, done = 0.0, 0
    for n, k, m in shapes:
        one = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        other = torch.randn(k, m, device=device, dtype=torch.bfloat16)
        for timed in (False, True):
            times = 100 if device.type == "cuda" else 2
            begun = time.perf_counter()
            for _ in range(times):
                torch.mm(one, other)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if timed:
                spent += time.perf_counter() - begun
                done += times * 2 * n * k * m
    return done / spent


def summary(cells: Cells) -> dict[str, Any]:
    """Return medians of each side, and ours against the others'."""
    told: dict[str, Any] = {}
    for work in dict.fromkeys(cell["work"] for cell in cells.all()):
        figures = ("tokens_per_second", "peak_gibibytes", "share_of_matrix_rate")
        told[work] = {
            side: {key: median(cell[key] for cell in kept) for key in figures}
            for side in SIDES
            if (kept := cells.all(work=work, side=side))
        }
    return {**told, "target": f"ahead of both; llama_1b_full above {SHARE_TARGET} of the rate"}


if __name__ == "__main__":
    main()
