# SPDX-License-Identifier: Apache-2.0
"""Models and data by their ids on a Hub: what works, and what each failure is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.hub_server import DROPPED, TOKEN, HubServer

#: Reads cases from stdin, one a line, and answers each: an import costs more than all of them.
ASK = """
import json, sys
from transformers import AutoModel
import hftune
from hftune.data.load_rows import load_splits
from hftune.models.load import load_config, load_tokenizer, load_weights
for line in sys.stdin:
    case = json.loads(line)
    try:
        if "data" in case:
            answer = len(load_splits(case["data"], revision=case.get("revision"))[0])
        else:
            load_config(case["model"], {}, case.get("revision"))
            load_tokenizer(case["model"], case.get("revision"))
            model, missing = load_weights(AutoModel, case["model"], revision=case.get("revision"))
            answer = sorted(missing)
    except hftune.HftuneError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory, tiny_encoder: Path, labelled_file: Path):
    """Start one process with an empty cache; hand it a case, get its answer."""
    with HubServer() as hub:
        files = {item.name: item.read_bytes() for item in tiny_encoder.iterdir()}
        hub.add("me/tiny", files)
        hub.add("me/shut", files, private=True)
        hub.add("you/shut", files, private=True)
        pickled = {name: content for name, content in files.items() if "safetensors" not in name}
        hub.add("me/pickled", {**pickled, "pytorch_model.bin": b"no pickle is read"})
        hub.add("datasets/me/rows", {"train.jsonl": labelled_file.read_bytes()})
        for name in ("failing", "dropping"):
            hub.add(f"me/{name}", files)
        environment = {**os.environ, **hub.environment(tmp_path_factory.mktemp("home"))}
        child = subprocess.Popen(
            [sys.executable, "-c", ASK], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None

        def answer(case: dict[str, str]) -> object:
            child.stdin.write(json.dumps(case) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        yield hub, answer
        child.stdin.close()
        child.stdout.close()
        child.wait()


def test_model_and_data(ask) -> None:
    hub, answer = ask
    commit = hub.repositories["me/tiny"].find("main").oid
    for case in ({"model": "me/tiny"}, {"model": "me/tiny", "revision": commit}):
        assert answer(case) == []
    assert answer({"model": "me/shut"}) == []  # private, and ours
    assert answer({"data": "me/rows"}) == 60


SPELLING = "is it spelled right? a private or gated one needs `hf auth login` or HF_TOKEN"


@pytest.mark.parametrize(
    ("case", "says", "hint"),
    [
        ({"model": "me/missing"}, "model.path: me/missing", SPELLING),
        ({"model": "you/shut"}, "model.path: you/shut", SPELLING),
        ({"model": "me/tiny", "revision": "nope"}, "nope is not a valid git identifier", ""),
        ({"model": "me/pickled"}, "no safetensors weights", "load with Transformers"),
        ({"data": "me/missing"}, "'me/missing' doesn't exist on the Hub", ""),
        ({"data": "me/rows", "revision": "nope"}, "Revision 'nope' doesn't exist", ""),
    ],
)
def test_mistakes(ask, case: dict[str, str], says: str, hint: str) -> None:
    hub, answer = ask
    said = answer(case)
    assert says in said
    assert hint in said
    assert not [path for _, path in hub.requests if path.endswith(".bin") and "GET" in path]


@pytest.mark.parametrize(
    ("name", "status", "hint"),
    [
        pytest.param("failing", 500, "did not answer as it should", marks=pytest.mark.slow),
        ("dropping", DROPPED, "did not answer"),
    ],
)
def test_hub_fails(ask, name: str, status: int, hint: str) -> None:
    hub, answer = ask
    hub.fail("resolve", status)
    said = answer({"model": f"me/{name}"})
    hub.forget()
    assert f"model.path: me/{name}" in said
    assert hint in said
    assert answer({"model": f"me/{name}"}) == []
    assert TOKEN not in said
