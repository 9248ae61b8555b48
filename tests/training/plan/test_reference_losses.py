# SPDX-License-Identifier: Apache-2.0
"""A curriculum by the loss of another model: the losses themselves, their cache, and bad input."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.core.cache import cache_folder
from hftune.training.plan import reference_losses as reference
from hftune.training.plan.prepare import prepare
from tests.stop_at import StopAt

Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def judge(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, labelled_file: Path
) -> Path:
    """A run on the same rows, its labels in another order than that of their names."""
    folder = tmp_path_factory.mktemp("judge") / "run"
    recipe = Recipe(
        task="text-classification",
        model=str(tiny_encoder),
        data={"path": str(labelled_file), "label_names": ["red", "blue", "green"]},
        method="lora",
        training={"output_dir": str(folder), "use_cpu": True, "max_steps": 4},
    )
    hftune.train(recipe)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(cache_folder("schema"), tmp_path / "cache" / "schema")
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))


def by_loss(make_recipe: Make, judge: Path | None, **sections: Any) -> Recipe:
    model = {} if judge is None else {"model": str(judge)}
    plain = make_recipe(**sections)
    data = {"path": plain.data.path, "validation_size": 0, "curriculum": {"name": "loss", **model}}
    return make_recipe(**{**sections, "data": data})


def judged(plan: Any, run: Run) -> np.ndarray:
    """The loss of each training row, one at a time, by a finished run."""
    losses = []
    for text, label in zip(
        plan.splits.examples.train["text"], plan.splits.examples.train["label"], strict=True
    ):
        with torch.no_grad():
            logits = run.model(**run.tokenizer(text, return_tensors="pt")).logits
        target = torch.tensor([run.metadata.label_names.index(label)])
        losses.append(F.cross_entropy(logits, target, reduction="none").item())
    return np.array(losses)


def test_rows_stand_in_the_order_of_their_losses(make_recipe: Make, judge: Path) -> None:
    plan = prepare(by_loss(make_recipe, judge))
    expected = judged(plan, hftune.load(judge))
    (folder,) = cache_folder("difficulty").iterdir()
    np.testing.assert_allclose(np.load(folder / "losses.npy"), expected, atol=1e-6)
    assert np.ptp(expected) > 0.01
    row_sampler: Any = plan.splits.row_sampler
    assert np.all(np.diff(expected[row_sampler.order]) > -1e-6)


def test_a_language_model_judges_as_it_was_pretrained(make_recipe: Make) -> None:
    """Without a model named, its own loss: the mean over the trained tokens of each row."""
    plan = prepare(by_loss(make_recipe, None, task="text-generation"))
    model = plan.objective.task.auto_model.from_pretrained(plan.pretrained.path)
    expected = []
    for row in plan.splits.train.dataset:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            expected.append(model(input_ids=ids, labels=labels).loss.item())
    row_sampler: Any = plan.splits.row_sampler
    assert np.all(np.diff(np.array(expected)[row_sampler.order]) > -1e-5)


def test_a_pass_that_was_broken_off_goes_on(
    make_recipe: Make, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that were judged are not judged again, nor is anything by a model that is the same."""
    whole: Any = prepare(by_loss(make_recipe, judge)).splits.row_sampler
    monkeypatch.setattr(reference, "PART", 16)
    parts: list[int] = []
    count = reference._losses

    def counting(model: Any, judge: Any, part: Any, size: int) -> Any:
        if len(parts) == 2 and not broken:
            broken.append(True)
            raise KeyboardInterrupt
        parts.append(len(part))
        return count(model, judge, part, size)

    broken: list[bool] = []
    monkeypatch.setattr(reference, "_losses", counting)
    with pytest.raises(KeyboardInterrupt):
        prepare(by_loss(make_recipe, judge))
    again: Any = prepare(by_loss(make_recipe, judge)).splits.row_sampler
    assert parts == [16, 16, 16, 12]
    assert again.order == whole.order
    prepare(by_loss(make_recipe, judge, training={"seed": 1}))
    assert len(parts) == 4, "out of the cache, whatever the seed"


def test_another_model_or_other_rows_are_judged_anew(
    make_recipe: Make, judge: Path, tmp_path: Path
) -> None:
    prepare(by_loss(make_recipe, judge))
    shutil.copytree(judge, tmp_path / "copy")
    prepare(by_loss(make_recipe, tmp_path / "copy"))
    assert len(list(cache_folder("difficulty").iterdir())) == 1, "known by content"
    weights = tmp_path / "copy" / "model" / "hftune.json"
    weights.write_text(weights.read_text() + " ")
    prepare(by_loss(make_recipe, tmp_path / "copy"))
    recipe = by_loss(make_recipe, judge)
    rows = {"path": recipe.data.path, "max_train_samples": 50, "validation_size": 0}
    prepare(make_recipe(data={**rows, "curriculum": {"name": "loss", "model": str(judge)}}))
    assert len(list(cache_folder("difficulty").iterdir())) == 3


def test_a_look_loads_no_model(make_recipe: Make, judge: Path) -> None:
    hftune.check(by_loss(make_recipe, judge))
    assert not list(cache_folder("difficulty").iterdir())


def test_it_trains_and_is_resumed(make_recipe: Make, judge: Path, tmp_path: Path) -> None:
    training = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = hftune.train(by_loss(make_recipe, judge, training=training))
    training["output_dir"] = str(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        hftune.train(by_loss(make_recipe, judge, training=training), callbacks=[StopAt(5)])
    shutil.rmtree(tmp_path / "cache" / "difficulty")
    resumed = hftune.train(Run(tmp_path / "stopped").recipe, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_bad_input(make_recipe: Make, judge: Path, tmp_path: Path) -> None:
    for model, sections, says in (
        (tmp_path / "absent", {}, "curriculum.model: .*absent: no finished model"),
        (judge, {"task": "text-generation"}, "is of single_label_classification, and these rows"),
        (judge, {"task": "token-classification"}, "and these rows of token-classification"),
    ):
        with pytest.raises(HftuneError, match=says):
            prepare(by_loss(make_recipe, model, **sections))
    recipe = by_loss(make_recipe, judge)
    path = tmp_path / "other.csv"
    path.write_text("text,label\n" + "alpha,red\nbeta,purple\n" * 8)
    chosen: Any = recipe.data.curriculum
    other = {"path": str(path), "validation_size": 0, "curriculum": vars(chosen)}
    with pytest.raises(HftuneError, match="does not know the labels purple"):
        prepare(make_recipe(data=other))
