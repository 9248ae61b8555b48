# SPDX-License-Identifier: Apache-2.0
"""Help and a mistake in a recipe answer without importing torch."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
sys.argv = ["hftune", *sys.argv[1:]]
from hftune.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "peft", "datasets", "accelerate", "sklearn", "matplotlib"}
    print("heavy:", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "Fine-tune Hugging Face models from short recipes"),
        (["train", "--help"], 0, "--resume"),
        (["--version"], 0, "0.1.0"),
        (["chat", "--help"], 0, "--temperature"),
        (["doctor", "--help"], 0, "--json"),
        (["export", "--help"], 0, "--combination"),
        (["init", "--help"], 0, "--column"),
        (["list"], 0, "adalora"),
        (["list", "optimizers", "--json"], 0, '"name": "adamw_torch"'),
        (["schema"], 0, "json-schema.org/draft/2020-12"),
        (["train", "{recipe}"], 2, "method.rank: unknown key; did you mean r?"),
        (["train", "nowhere.yaml"], 2, "no such recipe"),
    ],
)
def test_answers_without_torch(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    from hftune.recipe.fields import recipe_schema

    recipe_schema()  # the cache is there, as after the first use
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "task: text-classification\nmodel: demo:minilm\ndata: demo:docstrings\n"
        "method: {name: lora, rank: 8}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(item.format(recipe=recipe) for item in arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert "heavy: []" in done.stdout
