# SPDX-License-Identifier: Apache-2.0
"""One side of ``peers.py``, in that side's own environment: trains, and prints what it took.

    python peers_side.py SIDE TASK.json

Besides the peer it imports no more than Transformers.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


def main() -> None:
    """Train what the task says, and print tokens a second and the memory it took."""
    side, task = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(task["threads"])
    clock = Clock(task["warm"])
    with tempfile.TemporaryDirectory(prefix="side-") as folder:
        TRAINERS[side.split()[0]](task, folder, clock, side)
    print(json.dumps(clock.told()))


class Clock(TrainerCallback):
    """Counts real tokens and seconds of the steps after the first few, and the memory of all.

    Args:
        warm: Steps that are left out of tokens and seconds.
    """

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.begun = self.took = (0.0, 0.0)
        self.tokens = self.timed = self.steps = 0
        self.model_bytes = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the memory of the loaded model, and look at each batch that reaches it."""
        kwargs["model"].register_forward_pre_hook(self.count, with_kwargs=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.model_bytes = status("VmRSS")

    def count(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Count the tokens of a batch: what the mask shows, or all where there is none."""
        if not model.training:
            return
        mask, ids = kwargs.get("attention_mask"), kwargs["input_ids"]
        here = ids.numel() if mask is None else int(mask.sum())
        self.tokens += here
        self.timed += here if self.steps >= self.warm else 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin after the first few, and note each step."""
        self.steps = state.global_step
        now = time.process_time(), time.perf_counter()
        if self.steps == self.warm:
            self.begun = now
        self.took = now[0] - self.begun[0], now[1] - self.begun[1]

    def told(self) -> dict[str, Any]:
        """Return the figures."""
        spent, passed = self.took
        return {
            "tokens_per_cpu_second": round(self.timed / spent, 1),
            "tokens_per_second": round(self.timed / passed, 1),
            "megabytes_above_model": round((status("VmHWM") - self.model_bytes) / 2**20),
            "tokens": self.tokens,
            "steps": self.steps,
        }


def status(key: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def arguments(task: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return what all sides say to Transformers."""
    return {
        "output_dir": f"{folder}/run",
        "num_train_epochs": 1,
        "per_device_train_batch_size": task["batch"],
        "learning_rate": task["rate"],
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "logging_steps": 5,
        "disable_tqdm": True,
    }


def rows(task: dict[str, Any]) -> list[dict[str, str]]:
    """Return the pairs of prompt and completion."""
    return [json.loads(line) for line in Path(task["file"]).read_text().splitlines()]


def with_trainer(task: dict[str, Any], folder: str, clock: Clock, side: str) -> None:
    """``transformers.Trainer`` with a model of PEFT and a collator that pads."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    config = LoraConfig(**lora(task), task_type="CAUSAL_LM")

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        asked = tokenizer(row["prompt"]).input_ids
        ids = [*tokenizer(row["prompt"] + row["completion"]).input_ids, tokenizer.eos_token_id]
        return {"input_ids": ids, "labels": [-100] * len(asked) + ids[len(asked) :]}

    Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(**arguments(task, folder), train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(list(map(encode, rows(task)))),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[clock],
    ).train()


def with_trl(task: dict[str, Any], folder: str, clock: Clock, side: str) -> None:
    """TRL's ``SFTTrainer``, padded or packed."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    packed = side.endswith("packed")
    config = SFTConfig(
        **arguments(task, folder),
        max_length=task["max_length"],
        packing=packed,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": "float32"},
    )
    SFTTrainer(
        task["model"],
        args=config,
        train_dataset=Dataset.from_list(rows(task)),
        peft_config=LoraConfig(**lora(task), task_type="CAUSAL_LM"),
        callbacks=[clock],
    ).train()


def with_llamafactory(task: dict[str, Any], folder: str, clock: Clock, side: str) -> None:
    """LLaMA-Factory's own entry, with its template that adds nothing; the end is in the rows."""
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(task["model"]).eos_token
    pairs = [row | {"completion": row["completion"] + end} for row in rows(task)]
    Path(folder, "pairs.json").write_text(json.dumps(pairs))
    columns = {"prompt": "prompt", "response": "completion"}
    known = {"pairs": {"file_name": "pairs.json", "columns": columns}}
    Path(folder, "dataset_info.json").write_text(json.dumps(known))
    run_exp(
        {
            **arguments(task, folder),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": task["r"],
            "lora_alpha": task["lora_alpha"],
            "lora_dropout": 0.0,
            "model_name_or_path": task["model"],
            "infer_dtype": "float32",
            "template": "empty",
            "dataset": "pairs",
            "dataset_dir": folder,
            "cutoff_len": task["max_length"],
            "disable_shuffling": True,
            "disable_gradient_checkpointing": not side.endswith("default"),
            "overwrite_output_dir": True,
            "preprocessing_num_workers": 1,
        },
        callbacks=[clock],
    )


def with_hftune(task: dict[str, Any], folder: str, clock: Clock, side: str) -> None:
    """``hftune.train``, with what it does by default."""
    import hftune

    given = arguments(task, folder)
    for key in ("report_to", "use_cpu", "disable_tqdm"):
        del given[key]
    hftune.train(
        hftune.Recipe(
            task="text-generation",
            model=task["model"],
            data={
                "path": task["file"],
                "validation": task["validation"],
                "max_length": task["max_length"],
            },
            method={"name": "lora", **lora(task)},
            training=given
            | {
                "train_sampling_strategy": "sequential",
                "eval_strategy": "no",
                "gradient_checkpointing": side.endswith("checkpointed"),
            },
        ),
        callbacks=[clock],
    )


def lora(task: dict[str, Any]) -> dict[str, Any]:
    """Return PEFT's options."""
    return {"r": task["r"], "lora_alpha": task["lora_alpha"], "lora_dropout": 0.0,
            "target_modules": "all-linear"}  # fmt: skip


TRAINERS = {
    "trainer": with_trainer,
    "trl": with_trl,
    "llamafactory": with_llamafactory,
    "hftune": with_hftune,
}


if __name__ == "__main__":
    main()
