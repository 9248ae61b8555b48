# SPDX-License-Identifier: Apache-2.0
"""From a recipe to the Hub and back, as users do it: real processes, a Hub on the loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.hub.hub_server import READ_TOKEN, TOKEN, HubServer
from tests.warm_python import WarmPython

pytestmark = pytest.mark.slow  # real processes throughout

ADAPTER = """
task: text-classification
model: {model}
data: {data}
method: {{name: lora, r: 2}}
training: {{output_dir: {output}, use_cpu: true, max_steps: 3, learning_rate: 1e-2{more}}}
"""
WHOLE = ADAPTER.replace("{{name: lora, r: 2}}", "full").replace("classification", "generation")
PUSH = ", push_to_hub: true, hub_model_id: me/lora"
#: Plain PEFT and Transformers on another machine: an empty cache, and the id alone.
PULL = """
import sys, torch
from safetensors.torch import save_file
{imports}
model = {loading}.eval()
ids = torch.tensor([[5, 6, 7, 8, 9]])
with torch.no_grad():
    save_file({{"logits": model(input_ids=ids).logits}}, {output!r})
assert "hftune" not in sys.modules
"""
IDS = torch.tensor([[5, 6, 7, 8, 9]])
FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "hftune.json", "metrics.json",
    "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


class Hub(HubServer):
    """A Hub, and what runs the commands that talk to it."""

    python: WarmPython


@pytest.fixture(scope="module")
def hub(tiny_encoder: Path, labelled_file: Path, warm_python: WarmPython) -> Iterator[Hub]:
    with Hub() as server:
        server.python = warm_python
        server.add_folder("me/tiny", tiny_encoder)
        server.add("datasets/me/rows", {"train.jsonl": labelled_file.read_bytes()})
        yield server


@pytest.fixture(autouse=True)
def _forget(hub: Hub) -> None:
    hub.forget()


def run(
    hub: Hub, home: Path, *command: str, token: str | None = TOKEN, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own; a ``cold`` one imports everything itself."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(home, token)}
    if not cold:
        return hub.python.run(*command, env=variables)
    return subprocess.run(
        [sys.executable, *command], env=variables, capture_output=True, text=True, check=False
    )


def hftune(hub: Hub, home: Path, *arguments: Any, code: int = 0, **options: Any) -> str:
    done = run(hub, home, "-m", "hftune", *map(str, arguments), **options)
    assert done.returncode == code, done.stderr
    assert TOKEN not in done.stderr
    if "--accelerate" not in arguments:  # whose launcher shows its own when a process fails
        assert "Traceback" not in done.stderr
    return done.stderr


def pull(hub: Hub, home: Path, imports: str, loading: str) -> Tensor:
    program = PULL.format(imports=imports, loading=loading, output=str(home) + ".safetensors")
    done = run(hub, home, "-c", program)
    assert done.returncode == 0, done.stderr
    return load_file(str(home) + ".safetensors")["logits"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def trained(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with base model and data from the Hub, which pushed itself there."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    recipe = ADAPTER.format(model="me/tiny", data="me/rows", output=folder, more=PUSH)
    (folder.parent / "recipe.yaml").write_text(recipe)
    said = hftune(hub, folder.parent / "home", "train", folder.parent / "recipe.yaml", cold=True)
    return folder, said


def test_push_at_the_end_of_training(hub: Hub, trained: tuple[Path, str]) -> None:
    folder, said = trained
    assert said.index("will be pushed to me/lora (private, new)") < said.index("run folder:")
    assert "a fresh process gives the run's logits" in said
    repository = hub.repositories["me/lora"]
    assert repository.private
    _, commit = repository.branches["main"]  # nothing but the Hub's own first one, and ours
    assert f"pushed: {hub.endpoint}/me/lora/commit/{commit.oid}" in said
    assert commit.added == FILES
    for name, content in commit.files.items():
        for secret in (str(folder.parent), str(Path.home()) + "/", TOKEN):
            assert secret.encode() not in content, name
    card = commit.files["README.md"].decode()
    assert "base_model: me/tiny\n" in card
    assert 'from_pretrained("me/lora"' in card
    config = json.loads(commit.files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/tiny"
    source = json.loads((folder / "data.json").read_text())["sources"]
    assert source == "me/rows"


def test_pulled_by_id_it_gives_the_same_logits(
    hub: Hub, trained: tuple[Path, str], tiny_encoder: Path, tmp_path: Path
) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=3)
    model = PeftModel.from_pretrained(base, str(trained[0] / "model")).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        assert (expected - model.base_model(input_ids=IDS + 3).logits).abs().max() > 1e-3
    logits = pull(
        hub, tmp_path / "empty",
        "from peft import AutoPeftModelForSequenceClassification as Auto",
        "Auto.from_pretrained('me/lora', num_labels=3)",
    )  # fmt: skip
    torch.testing.assert_close(logits, expected)


def test_pulled_recipe_runs_again(hub: Hub, trained: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(hub.files("me/lora")["recipe.yaml"])
    said = hftune(
        hub, tmp_path / "home", "check", tmp_path / "recipe.yaml"
    )  # fmt: skip
    assert "the recipe is fine" in said
    assert "pushed" not in said


def test_dry_run_and_second_push(hub: Hub, trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = trained
    before = contents(folder)
    said = hftune(hub, tmp_path / "home", "push", folder, "--repo", "me/lora", "--dry-run")
    assert not hub.writes
    assert "to me/lora (private, there already)" in said
    assert "left out: checkpoints/, data.json, environment.json, log.jsonl, plots/" in said
    size = len(hub.files("me/lora")["tokenizer.json"])
    assert f"{size:,} bytes  replaces" in said
    assert "a dry run: nothing was sent" in said

    hub.files("me/lora")["notes.txt"] = b"mine"
    hub.fail("commit", 500)
    said = hftune(hub, tmp_path / "home", "push", folder, "--repo", "me/lora", "--revision", "v2",
                  code=1)  # fmt: skip
    assert "error: me/lora: the files did not arrive: the Hub failed (500" in said
    assert f"{folder} is as it was" in said
    assert f"hint: try again later; then: hftune push {folder} --repo me/lora --revision v2" in said
    hub.forget()
    hftune(hub, tmp_path / "home", "push", folder, "--repo", "me/lora", "--revision", "v2",
           "--message", "mine")  # fmt: skip
    commit = hub.repositories["me/lora"].branches["v2"][-1]
    assert commit.message == "mine"
    assert commit.added == {"README.md"}  # which names the branch; the rest is the same
    assert commit.files["notes.txt"] == b"mine"
    assert contents(folder) == before


def test_permission_is_asked_before_training(
    hub: Hub, labelled_file: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    values = {"data": labelled_file, "output": tmp_path / "run"}
    recipe.write_text(ADAPTER.format(model="me/tiny", more=PUSH, **values))
    said = hftune(hub, tmp_path / "home", "train", recipe, code=2, token=READ_TOKEN)
    assert "error: me/lora: the token of me may only read" in said
    recipe.write_text(ADAPTER.format(model=tiny_encoder, more=PUSH, **values))
    said = hftune(hub, tmp_path / "home", "train", recipe, code=2)
    assert "error: training.push_to_hub: an adapter needs its base model" in said
    assert not (tmp_path / "run").exists()
    assert not hub.writes


def test_local_adapter_names_its_base(
    hub: Hub, labelled_file: Path, tiny_encoder: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    """--base is believed only after the model on the Hub gave the run's logits."""
    weights = load_file(tiny_encoder / "model.safetensors")
    hub.add_folder("me/other", tiny_encoder)
    other = bytearray((tiny_encoder / "model.safetensors").read_bytes())
    first = min(len(tensor.numpy().tobytes()) for tensor in weights.values())
    other[-first:] = bytes(first)
    hub.files("me/other")["model.safetensors"] = bytes(other)
    recipe = tmp_path / "recipe.yaml"
    output = tmp_path / "run"
    recipe.write_text(
        ADAPTER.format(model=tiny_encoder, data=labelled_file, output=output, more="")
    )
    hftune(hub, tmp_path / "home", "train", recipe)
    assert not hub.requests  # nobody asked for a push
    push = ("push", output, "--repo", "me/local")
    said = hftune(hub, tmp_path / "home", *push, code=2)
    assert "is not on the Hub" in said
    said = hftune(hub, tmp_path / "home", *push, "--base", "me/other", code=1)
    assert "other logits than the run" in said
    assert not hub.writes
    hftune(hub, tmp_path / "home", *push, "--base", "me/tiny")
    card = hub.files("me/local")["README.md"].decode()
    assert "base_model: me/tiny\n" in card
    assert b"labelled.jsonl" in hub.files("me/local")["recipe.yaml"]


def test_failed_push_leaves_a_finished_run(
    hub: Hub, chat_file: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    """A whole model on two processes; the local base needs no id, and rank 0 alone pushes."""
    more = ", push_to_hub: true, hub_model_id: me/whole, hub_private_repo: false"
    recipe = tmp_path / "recipe.yaml"
    output = tmp_path / "run"
    recipe.write_text(
        WHOLE.format(model=tiny_decoder, data=chat_file, output=output, more=more)
    )  # fmt: skip
    hub.fail("create", 403)
    said = hftune(hub, tmp_path / "home", "train", recipe, "--accelerate", "multi_cpu", code=1)
    assert f"the model is finished and lies in {output / 'model'}, but it was not pushed" in said
    assert "may not write there (403" in said
    assert hub.writes == {"create": 1}
    command = f"hftune push {output} --repo me/whole --public"
    assert command in said
    hub.forget()
    hftune(hub, tmp_path / "home", *command.split()[1:])
    repository = hub.repositories["me/whole"]
    assert not repository.private
    card = hub.files("me/whole")["README.md"].decode()
    assert "base_model" not in card
    assert str(tiny_decoder.parent) not in card
    model = AutoModelForCausalLM.from_pretrained(output / "model").eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    logits = pull(
        hub, tmp_path / "empty", "from transformers import AutoModelForCausalLM as Auto",
        "Auto.from_pretrained('me/whole')",
    )  # fmt: skip
    torch.testing.assert_close(logits, expected)
