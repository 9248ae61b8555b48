# SPDX-License-Identifier: Apache-2.0
"""CPU seconds until hftune answers: help, a mistake in a recipe, and the first step of a training.

    python benchmarks/startup.py

Median of whole processes each, user and system time: 10 for help and for the mistake (schema
cached), 5 for the others. Goals: 0.35 and 0.7; and until the first step begins a second more than
``import transformers, peft`` with the model and its tokenizer loaded. These two alternate, on one
thread. Results go to benchmarks/results/startup.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results" / "startup.json"
RECIPE = "task: text-classification\nmodel: demo:minilm\ndata: demo:docstrings\n"
MISTAKE = f"{RECIPE}method: {{name: lora, rank: 8}}\n"
TRAINING = f"{RECIPE}method: full\ntraining: {{eval_strategy: 'no'}}\n"
#: What a script of one's own would need first.
PLAIN = """
import sys
import transformers, peft
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
"""
#: ``hftune train``, ended where the first step begins.
FIRST_STEP = """
import os
from functools import partial
from hftune.cli import main, recipes
verb = recipes.verb

def ended(name):
    function = verb(name)
    from transformers import TrainerCallback

    class Ended(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            os._exit(7)

    return partial(function, callbacks=[Ended()])

recipes.verb = ended
main()
"""
FIRST_STEP_BEGAN = 7


def main() -> None:
    """Measure, print and keep the figures."""
    from hftune.models.demo_models import demo_model_path

    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {"mistake": MISTAKE, "training": TRAINING}.items():
            Path(folder, f"{name}.yaml").write_text(text)
        module = ["-m", "hftune"]
        for name, arguments in {
            "help": [*module, "--help"],
            "recipe mistake": [*module, "train", f"{folder}/mistake.yaml"],
        }.items():
            cpu_seconds(arguments)  # writes the caches
            figures[name] = spread([cpu_seconds(arguments) for _ in range(10)])
        plain, ours = [], []
        recipe = f"{folder}/training.yaml"
        for number in range(5):
            plain.append(cpu_seconds(["-c", PLAIN, str(demo_model_path("minilm"))]))
            run = f"training.output_dir={folder}/{number}"
            ours.append(cpu_seconds(["-c", FIRST_STEP, "train", recipe, run], FIRST_STEP_BEGAN))
        figures["imports and model"] = spread(plain)
        figures["first step"] = spread(ours)
    for name, figure in figures.items():
        print(name, figure)
    result = {"command": "python benchmarks/startup.py", "cpu_seconds": figures}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def spread(seconds: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": median(seconds), "min": min(seconds), "max": max(seconds)}


def cpu_seconds(arguments: list[str], expected: int | None = None) -> float:
    """Return what one process takes, and see that it ended as it should."""
    before = os.times()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=one_thread
    )
    after = os.times()
    if expected is not None and done.returncode != expected:
        raise SystemExit(done.stdout + done.stderr)
    spent = after.children_user + after.children_system
    return round(spent - before.children_user - before.children_system, 3)


if __name__ == "__main__":
    main()
