# SPDX-License-Identifier: Apache-2.0
"""One of several processes: ``accelerate launch several_processes.py RECIPES.json [KINDS.json]``.

Trains the recipes, and goes on with runs that are named by their folder; then, given kinds of
labels, saves the gradient of every loss beside their file, each process having its share of rows.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

import hftune
from tests.training.loss_cases import Bench, all_cases

GRADIENTS = "gradients.safetensors"


def share_gradients(recipes: Path) -> None:
    """Average the gradients over the processes, as DDP does, and let the first one save them."""
    found = {}
    benches = {kind: Bench(sections) for kind, sections in json.loads(recipes.read_text()).items()}
    for case in all_cases():
        here = benches[case.kind]
        accelerator = here.trainer.accelerator
        mine = here.rows[accelerator.process_index :: accelerator.num_processes]
        gradient = here.of_batches(here.loss(case), [mine[:3], mine[3:]])
        found[str(case)] = accelerator.reduce(gradient, reduction="mean")
    if accelerator.is_main_process:
        save_file(found, recipes.with_name(GRADIENTS))


if __name__ == "__main__":
    for told in json.loads(Path(sys.argv[1]).read_text()):
        if isinstance(told, str):
            hftune.train(hftune.Run(told).recipe, resume=True)
        else:
            hftune.train(hftune.Recipe(**told))
    if len(sys.argv) > 2:
        share_gradients(Path(sys.argv[2]))
