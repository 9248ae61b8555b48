# SPDX-License-Identifier: Apache-2.0
"""Section ``old_runs``: run folders of an earlier version, used by the version of today.

``make`` leaves a folder with models, rows, a finished run of every method, and runs that were
stopped in the middle of an epoch. A recording then loads, evaluates and predicts with each finished
run, and resumes a copy of each that was stopped. Recipes and adapters name their base model by its
path, so the folder must stay where it was made.
"""

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import curves
import tiny
from surface import Place, attempt, box, exact, read_run, said, without_pictures

ROWS = {task: rows for task, (_, rows) in tiny.PLACES.items()}
TEXTS = ["alpha red", "two green blue one"]
STOPPED_AT = 6  # one step after the checkpoint, in the middle of an epoch
COMMANDED = ("method lora text-classification", "method full text-generation")


class StopAt:
    """Made into a callback that raises as Ctrl-C does."""

    def __new__(cls, step: int) -> Any:
        """Return the callback; Transformers is imported only now."""
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == step:
                    raise KeyboardInterrupt

        return Stop()


def make(folder: Path, names: dict[str, list[dict[str, Any]]]) -> None:
    """Leave the run folders, unless they are there."""
    import hftune

    if (folder / "complete").exists():
        return
    place = Place(work=folder)
    tiny.build_all(place.tiny)
    with without_pictures(), contextlib.redirect_stderr(io.StringIO()):
        curves.teachers(place)
        for kind, recipes in (("finished", finished(place, names)), ("stopped", stopped(place))):
            for name, recipe in recipes.items():
                output = folder / kind / name
                shutil.rmtree(output, ignore_errors=True)
                recipe["training"]["output_dir"] = str(output)
                calls = [StopAt(STOPPED_AT)] if kind == "stopped" else []
                with contextlib.suppress(hftune.HftuneError, KeyboardInterrupt):
                    hftune.train(hftune.Recipe(**recipe), callbacks=calls)
    (folder / "complete").write_text("")


def finished(place: Place, names: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return a run of every method and task that it suits first, and of some other kinds."""
    found = curves.methods(place, names["methods"])
    for task in ("token-classification", "text2text-generation"):
        for method in ("full", "lora", "bottleneck"):
            found[f"method {method} {task}"] = curves.sections(place, task, method)
    kinds = ("regression mse", "multi_label focal", "mean pooling", "thresholds", "generation",
             "gap and prior", "packed", "probe of ridge", "hidden states", "swa")  # fmt: skip
    others = curves.others(place)
    return {**found, **{kind: others[kind] for kind in kinds}}


def stopped(place: Place) -> dict[str, Any]:
    """Return runs whose checkpoints hold more than weights."""
    classify = "text-classification"
    found = {
        f"{method} {task}": curves.sections(place, task, method)
        for method in ("full", "lora", "adalora", "relora", "prune", "diff_pruning", "bottleneck")
        for task in (classify, "text-generation")
    }
    others = curves.others(place)
    kinds = ("streaming", "mixture", "swa", "mean teacher", "staged by plateau", "unfreezing",
             "hidden states", "tokens", "best kept", "trunk kept", "accumulated")  # fmt: skip
    found |= {kind: others[kind] for kind in kinds}
    for name in ("sgd", "lbfgs", "muon", "schedule_free_adamw"):
        found[name] = curves.sections(place, classify, training={"optim": name})
    listed = {"name": "rarity", "pacing": "root", "duration": 0.9}
    found["curriculum"] = curves.sections(place, classify, data={"curriculum": listed})
    found["seq2seq"] = curves.sections(place, "text2text-generation", "lora")
    return found


def items(place: Place, names: Any) -> dict[str, Path]:
    """Return the run folders there are."""
    assert place.runs is not None
    found = {
        f"{kind} {path.name}": path
        for kind in ("finished", "stopped")
        for path in sorted((place.runs / kind).iterdir())
        if (path / "recipe.yaml").exists()
    }
    typed = {f"typed {name}": place.runs / "finished" / name for name in COMMANDED}
    typed |= {"typed resume": place.runs / "stopped" / "lora text-classification"}
    return {**found, **typed}


def record(place: Place, key: str, folder: Path) -> Any:
    """Use a run folder and return what came of it."""
    import hftune

    kind = key.partition(" ")[0]
    if kind == "finished":
        return _used(place, key, folder)
    with _copied(place, key, folder) as copy:
        if kind == "stopped":
            with without_pictures():
                recipe = copy / "recipe.yaml"
                found, _ = attempt(
                    place, lambda: hftune.train(hftune.Recipe.load(recipe), resume=True)
                )
            return found | read_run(place, copy)
        return _typed(place, key, copy)


@contextlib.contextmanager
def _copied(place: Place, key: str, folder: Path) -> Iterator[Path]:
    with box(place, f"old_runs {key}") as here:
        shutil.copytree(folder, here / "run")
        yield here / "run"


def _used(place: Place, key: str, folder: Path) -> dict[str, Any]:
    import hftune

    run, rows = hftune.load(folder), _rows(folder)
    found, recipe = attempt(place, lambda: place.plain(run.recipe.to_yaml()))
    found["recipe"] = recipe
    with box(place, f"old_runs {key}") as here:
        metrics, figures = attempt(place, lambda: hftune.evaluate(run, rows))
        answers, answered = attempt(
            place, lambda: hftune.predict(run, rows, here / "out.jsonl", max_new_tokens=4)
        )
        found["evaluate"] = metrics | {"figures": exact(figures)}
        found["predict"] = answers | {"rows": None if answered is None else exact(list(answered))}
    found["load"], found["logits"] = attempt(place, lambda: _logits(hftune.load(folder / "model")))
    return found


def _rows(folder: Path) -> str:
    """Return the rows that a run was trained on."""
    sources: dict[str, str] = json.loads((folder / "data.json").read_text())["sources"]
    return next(iter(sources))


def _logits(run: Any) -> Any:
    """Return the bits of the logits of two texts, and of every weight."""
    import torch

    model = run.model
    if not isinstance(model, torch.nn.Module):
        return type(model).__name__
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if "original_module" not in name:  # PEFT's copy of a head, drawn anew and never used
            digest.update(name.encode() + weight.detach().float().numpy().tobytes())
    batch = run.tokenizer(TEXTS, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return {"weights": digest.hexdigest(), "logits": exact(logits.float().flatten()[:64].tolist())}


def _typed(place: Place, key: str, folder: Path) -> Any:
    """Type the verbs that take a run folder."""
    if key == "typed resume":
        done = commands.run(folder.parent, ["train", str(folder), "--resume"])
        found = read_run(place, folder)
        return {"code": done.returncode, "err": said(place, done.stderr), **found}
    rows, out = _rows(folder), folder.parent
    typed = {
        "evaluate": ["evaluate", str(folder), rows, "--output", str(out / "figures.json")],
        "predict": ["predict", str(folder), rows, str(out / "rows.jsonl"), "--max-new-tokens", "4"],
        "export": ["export", str(folder), "--output", str(out / "plain")],
        "explain": ["explain", str(folder), "--text", "alpha red", "--output", str(out / "page")],
    }
    found = {}
    for name, command in typed.items():
        done = commands.run(out, command)
        found[name] = {"code": done.returncode, "err": said(place, done.stderr)}
    found["figures"] = exact(json.loads((out / "figures.json").read_text()))
    found["rows"] = exact([json.loads(line) for line in (out / "rows.jsonl").open()])
    found["plain"] = read_run(place, out / "plain")
    found["page"] = sorted(path.name for path in (out / "page").rglob("*"))
    return found
