# SPDX-License-Identifier: Apache-2.0
"""What every method leaves: loaded in another process, trained again, on a wrong base, damaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import hftune
from hftune import HftuneError
from hftune.methods import ROWS
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from tests.conformance import loading_process
from tests.conformance.cases import Bases, apply, batch, logits, pairs, train
from tests.conformance.runs import TASKS, TEXTS, Runs, save_base, text_logits

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
FILES = (
    "adapter_config.json", "adapter_model.safetensors", "config.json", "hftune.json",
    "model.safetensors", "probe.json", "probe.skops",
)  # fmt: skip
DAMAGES = ("missing", "cut", "lacking", "shape")


def as_it_is(model: Any) -> None:
    """Change nothing."""


def drawn_anew(model: Any) -> None:
    """Make another model of the same shapes."""
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)


@pytest.fixture(scope="module")
def sources(tiny_encoder: Path, tiny_decoder: Path) -> dict[str, Path]:
    """The tiny model of each task."""
    return dict(zip(TASKS, (tiny_encoder, tiny_decoder), strict=True))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path], labelled_file: Path,
    chat_file: Path,
) -> Runs:  # fmt: skip
    """A short run of every method."""
    root = tmp_path_factory.mktemp("runs")
    bases = {task: save_base(sources[task], root / "base" / task, task, as_it_is) for task in TASKS}
    return Runs(root, bases, dict(zip(TASKS, (labelled_file, chat_file), strict=True)))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> dict[str, Path]:
    """Bases of the same shapes with other weights."""
    root = tmp_path_factory.mktemp("others")
    return {task: save_base(sources[task], root / task, task, drawn_anew) for task in TASKS}


@pytest.fixture(scope="module", params=list(ROWS))
def name(request: pytest.FixtureRequest) -> str:
    """Every method, with all of its tests in a row."""
    return str(request.param)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_trained_again(name: str, runs: Runs, tmp_path: Path) -> None:
    """A whole model goes on where it was; an adapter is refused, and says what to name."""
    saved = runs(name)
    task = runs.recipe(name, tmp_path).task
    again = runs.recipe(name, tmp_path, model={"path": str(saved.folder / "model")})
    if ROWS[name].needs_base:
        with pytest.raises(HftuneError, match=r"no config\.json in it") as raised:
            prepare(again)
        assert str(runs.bases[task]) in str(raised.value.hint)
        assert "which is not trained on" in str(raised.value.hint) or ROWS[name].fitted
        return
    plan = prepare(again)
    model = load_model(plan).model
    same(text_logits(model, plan.pretrained.processor)[1], saved.logits)
    result = build_trainer(plan, LoadedModel(model)).train()
    assert 0 < result.training_loss < 20
    assert (text_logits(model, plan.pretrained.processor)[1] - saved.logits).abs().max() > 1e-4


def test_on_another_base(name: str, runs: Runs, others: dict[str, Path], tmp_path: Path) -> None:
    """The folder that a run names as its base holds another model now."""
    saved = runs(name)
    copy = tmp_path / name
    shutil.copytree(saved.folder / "model", copy)
    metadata = json.loads((copy / "hftune.json").read_text())
    other = str(others[metadata["task"]])
    (copy / "hftune.json").write_text(json.dumps({**metadata, "base_model": other}))
    if not ROWS[name].needs_base:
        assert metadata["base_fingerprint"] is None
        same(text_logits(hftune.load(copy).model, hftune.load(copy).tokenizer)[1], saved.logits)
        return
    with pytest.raises(HftuneError, match="was trained on other weights than") as raised:
        print(hftune.load(copy).model)
    assert str(copy) in raised.value.message
    assert other in raised.value.message
    assert raised.value.hint


def damage(path: Path, how: str) -> bool:
    """Damage a file; False where it cannot be damaged so."""
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif path.suffix != ".safetensors":
        return False
    else:
        weights = load_file(path)
        largest = max(weights, key=lambda key: weights[key].numel())
        value = weights.pop(largest)
        if how == "shape":
            weights[largest] = torch.cat([value, value])
        save_file(weights, path, metadata={"format": "pt"})
    return True


def test_damaged(name: str, runs: Runs, tmp_path: Path) -> None:
    saved = runs(name).folder / "model"
    tried = 0
    for file in (file for file in FILES if (saved / file).exists()):
        for how in DAMAGES:
            copy = tmp_path / f"{how}-{file}"
            shutil.copytree(saved, copy)
            if not damage(copy / file, how):
                continue
            with pytest.raises(HftuneError) as raised:
                print(hftune.load(copy).model)
            assert str(copy) in raised.value.message, (file, how)
            assert raised.value.hint or not ROWS[name].needs_base, (file, how)
            tried += 1
    assert tried >= 6


@pytest.mark.timeout(900)
def test_another_process_gives_the_same_logits(runs: Runs, tmp_path: Path) -> None:
    """One process loads what all methods saved, with head, added token and tokenizer."""
    bases = Bases(tmp_path / "bases")
    expected, images = {}, {}
    for name, kind in (case.values for case in pairs("vit")):
        if ROWS[name].fitted:
            continue
        _, method, model = apply(name, kind, bases)
        train(model, method, kind)
        finished: Any = method.finish(model)
        expected[f"{name}.images"] = logits(finished, kind)
        finished.save_pretrained(tmp_path / name)
        quantization = {**ROWS["qlora"].quantization, "llm_int8_skip_modules": ["classifier"]}
        images[name] = {
            "base": str(bases.folder(kind)) if ROWS[name].needs_base else None,
            "folder": str(tmp_path / name),
            "quantization": quantization if ROWS[name].quantization else None,
        }
    for name in ROWS:
        expected[f"{name}.ids"], expected[f"{name}.logits"] = runs(name).ids, runs(name).logits
    asked = {
        "texts": TEXTS,
        "runs": {name: str(runs(name).folder) for name in ROWS},
        "images": images,
        "pixels": batch("vit")["pixel_values"].tolist(),
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, str(loading_process.__file__), "asked.json", "answer.safetensors"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = load_file(tmp_path / "answer.safetensors")
    assert answer.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(answer[key], value, atol=1e-5, rtol=1e-5, msg=key)
