# SPDX-License-Identifier: Apache-2.0
"""What hftune's own methods leave: pushed, and back over HTTP with the lines of its card alone."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hftune
from hftune import Recipe
from tests.hub.hub_server import HubServer

pytestmark = [
    pytest.mark.slow,
    # The client hands a file over in a way that httpx2 has deprecated.
    pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning"),
]

#: Repository -> what is trained, and whether the result needs its base.
METHODS: dict[str, tuple[dict[str, Any], bool]] = {
    "bottleneck": ({"name": "bottleneck", "reduction_factor": 4}, True),
    "diff": ({"name": "diff_pruning", "mode": "l1", "target_sparsity": 0.9}, True),
    "probe": ({"name": "probe", "param_grid": {}}, True),
    "relora": ({"name": "relora", "r": 2, "merge_every": 2}, False),
    "neurons": ({"name": "prune", "structure": "ffn", "sparsity": 0.25}, False),
    "weights": ({"name": "prune", "sparsity": 0.5}, False),
    "text": ({"name": "prompt_tuning", "prompt_tuning_init": "TEXT",
              "prompt_tuning_init_text": "red one"}, True),
    "prefix": ({"name": "prefix_tuning", "prefix_projection": True}, True),
    "ranks": ({"name": "adalora", "tinit": 0, "tfinal": 0.5}, True),
}  # fmt: skip
TRAINING = {"max_steps": 6, "learning_rate": 0.02, "eval_strategy": "no", "save_strategy": "no"}
IDS = [[2, 6, 7, 8, 3], [2, 10, 11, 9, 3]]
#: Before the cards' lines, between them, and after them.
BEGIN = (
    f"import torch\nfrom safetensors.torch import save_file\nids, out = torch.tensor({IDS}), {{}}\n"
)
LOGITS = "with torch.no_grad():\n    out['NAME'] = model.eval()(input_ids=ids).logits\n"
SHARES = (
    "given = features(input_ids=ids, attention_mask=torch.ones_like(ids))\n"
    "out['NAME'] = torch.tensor(probe.predict_proba(given))\n"
)
END = "save_file(out, 'out.safetensors')\n"


def test_methods_of_our_own_come_back(
    hub: HubServer, labelled_file: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """One process with an empty cache runs the lines of every card, on ids of repositories."""
    hub.add_folder("me/tiny", tiny_encoder)
    expected, program = {}, BEGIN
    for name, (method, needs_base) in METHODS.items():
        is_probe = name == "probe"
        training = {"output_dir": str(tmp_path / name), "use_cpu": True}
        recipe = Recipe(
            task="text-classification", model=str(tiny_encoder), data=str(labelled_file),
            method=method, training=training if is_probe else {**TRAINING, **training},
        )  # fmt: skip
        run = hftune.train(recipe)
        hftune.push(run.path, f"me/{name}", base="me/tiny" if needs_base else None)
        with torch.no_grad():
            logits = hftune.load(run.path).model(
                input_ids=torch.tensor(IDS), attention_mask=torch.ones(2, 5, dtype=torch.long)
            ).logits  # fmt: skip
        files = hub.files(f"me/{name}")
        for file, content in files.items():
            assert str(tmp_path).encode() not in content, file
            assert str(tiny_encoder).encode() not in content, file
        card = files["README.md"].decode()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert f'"me/{name}"' in code
        expected[name] = logits.softmax(-1) if is_probe else logits
        program += code + (SHARES if is_probe else LOGITS).replace("NAME", name)
    requests = len(hub.requests)
    done = subprocess.run(
        [sys.executable, "-c", program + END],
        cwd=tmp_path,
        env={**os.environ, **hub.environment(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) > requests
    actual = load_file(tmp_path / "out.safetensors")
    for name, due in expected.items():
        torch.testing.assert_close(actual[name].to(due), due, atol=1e-5, rtol=1e-5, msg=name)
        assert (due[0] - due[1]).abs().max() > 1e-4, name
