# SPDX-License-Identifier: Apache-2.0
"""Runs whose frozen layers are kept against runs that run them in every step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hftune
from hftune.core.cache import cache_folder
from hftune.core.errors import HftuneError
from hftune.recipe.recipe import Recipe
from hftune.training.build import build_trainer
from hftune.training.frozen_layer_cache import Tokens, cached_frozen_layers
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare

Make = Callable[..., Recipe]
CLASSIFICATION, TAGS = "text-classification", "token-classification"
UPPER_LORA = {"name": "lora", "r": 4, "layers_to_transform": [1],
              "target_modules": ["q_proj", "v_proj"]}  # fmt: skip
TRAINING = {"max_steps": -1, "num_train_epochs": 2, "learning_rate": 1e-3, "save_strategy": "no",
            "eval_strategy": "epoch"}  # fmt: skip
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """States are kept for one test; the schema is not read again."""
    schemas = cache_folder("schema")
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "schema").symlink_to(schemas)
    return tmp_path / "cache" / "trunk"


@pytest.fixture
def recipe(make_recipe: Make, tmp_path: Path) -> Make:
    """Build a recipe of two epochs, with a word on the trunk and a folder of its own."""
    made: list[Recipe] = []

    def build(task: str = CLASSIFICATION, cache: bool | None = None, **sections: Any) -> Recipe:
        plain = make_recipe(task)
        config = sections.pop("config", {})
        sections = {"method": "head_only", **sections}
        training = {**TRAINING, "output_dir": str(tmp_path / f"run{len(made)}")}
        training |= sections.pop("training", {})
        data = {"path": str(plain.data.path), "cache_trunk": cache, **sections.pop("data", {})}
        model = {"path": str(plain.model.path), "config": config}
        made.append(make_recipe(task, training, data=data, model=model, **sections))
        return made[-1]

    return build


def losses(run: hftune.Run) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "eval_loss") if name in line]


@pytest.mark.parametrize(
    ("task", "sections"),
    [
        (CLASSIFICATION, {"method": "head_only"}),
        (CLASSIFICATION, {"method": "head_only", "data": {"padding_free": False}}),
        (TAGS, {"method": {"name": "freeze", "freeze_layers": 0}}),
        (
            "text-generation",
            {"method": UPPER_LORA, "training": {"gradient_accumulation_steps": 2}},
        ),
        (
            CLASSIFICATION,
            {
                "method": {"name": "freeze", "freeze_layers": 0},
                "data": {"sampling": "balanced"},
                "loss": "r_drop",
                "config": {"classifier_dropout": 0.3},
            },
        ),
        (
            CLASSIFICATION,
            {"method": {"name": "freeze", "freeze_layers": 0, "head_only_steps": 4}},
        ),
    ],
    ids=["head", "head padded", "tags", "lora", "drawn twice", "unfrozen later"],
)
def test_a_run_is_the_same_at_every_step(
    task: str, sections: dict, recipe: Make, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = hftune.train(recipe(task, False, **sections))
    assert not own_cache.exists()
    run = hftune.train(recipe(task, None, **sections))
    said = capsys.readouterr().err
    assert said.count("frozen: run once for") == 2
    assert "every step" not in said
    assert len(losses(whole)) >= 8
    assert losses(run) == pytest.approx(losses(whole), abs=1e-6)
    weights = dict(whole.model.named_parameters())
    for name, weight in run.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-5, rtol=0)


def test_states_are_found_again_and_damage_is_mended(
    recipe: Make, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = hftune.train(recipe())
    places = sorted(own_cache.iterdir())
    capsys.readouterr()
    hftune.train(recipe(training={"learning_rate": 1e-4}))
    assert capsys.readouterr().err.count("out of the cache") == 2
    assert sorted(own_cache.iterdir()) == places
    states = places[0] / "states"
    whole = states.read_bytes()
    states.unlink()  # a mapped file is not written into
    states.write_bytes(whole[:-4] + b"\0\0\0\1")
    mended = hftune.train(recipe())
    said = capsys.readouterr().err
    assert "damaged, or not what is expected; it is computed again" in said
    assert states.read_bytes() == whole
    assert losses(mended) == losses(first)


def test_other_weights_layers_or_rows_have_other_states(recipe: Make, own_cache: Path) -> None:
    def places(moved: float = 0.0, rate: float = 0.1, **sections: Any) -> set[str]:
        training = {"eval_strategy": "no", "learning_rate": rate}
        plan = prepare(recipe(training=training, **sections))
        model: Any = load_model(plan).model
        with torch.no_grad():
            model.base_model.embeddings.word_embeddings.weight[5] += moved
        with cached_frozen_layers(plan, build_trainer(plan, LoadedModel(model))):
            return {path.name for path in own_cache.iterdir()}

    assert len(places()) == 1
    assert len(places(method={"name": "freeze", "freeze_layers": 0})) == 2
    assert len(places(data={"max_length": 4})) == 3
    assert len(places(moved=0.1)) == 4
    assert len(places(rate=0.2)) == 4


def test_a_full_disk_lets_the_layers_run_in_every_step(
    recipe: Make,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
    small_files: Callable[[int], None],
) -> None:
    plan = prepare(recipe(cache=True, config={**DROPOUT, "classifier_dropout": 0.0}))
    trainer = build_trainer(plan, load_model(plan))
    small_files(4096)
    with cached_frozen_layers(plan, trainer):
        batch = plan.objective.task.collator(plan.pretrained.processor)(
            [plan.splits.train.dataset[0]]
        )
        batch.pop("labels")
        model: Any = trainer.model
        one, other = (model.train()(**batch).logits for _ in range(2))
        assert torch.equal(one, other)  # without dropout all the same
    said = capsys.readouterr().err
    assert "states of frozen layers are not kept: File too large; they run in every step" in said
    assert list(own_cache.iterdir()) == []


def test_states_that_are_too_large_are_not_kept(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is asked for all the same is the run without dropout below the head."""
    settings = {"cache": True, "config": {**DROPOUT, "classifier_dropout": 0.2}}
    with monkeypatch.context() as patched:
        patched.setenv("HFTUNE_CACHE_LIMIT", str(2**-20))
        other = hftune.train(recipe(**settings))
    assert "are not kept: they take 0 MiB, and" in capsys.readouterr().err
    run = hftune.train(recipe(**settings))
    assert "are not kept" not in capsys.readouterr().err
    assert losses(other) == pytest.approx(losses(run), abs=1e-6)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"training": {"neftune_noise_alpha": 5.0}}, "neftune_noise_alpha moves"),
        ({"regularization": {"weight_noise": {"std": 0.1}}}, r"regularization\.weight_noise moves"),
        ({"regularization": {"adversarial": 0.5}}, r"regularization\.adversarial moves"),
        ({"training": {"bf16_full_eval": True}}, "an evaluation in half precision"),
        ({"loss": "mixup"}, "mixup mixes"),
        ({"training": {"torch_compile": True}}, "a compiled model"),
        ({"method": "full"}, "nothing is frozen"),
    ],
    ids=str,
)
def test_where_it_would_not_be_exact_it_is_refused_with_the_reason(
    sections: dict, says: str, recipe: Make, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cache in (True, None):
        plan = prepare(recipe(cache=cache, **sections))
        context = cached_frozen_layers(plan, build_trainer(plan, load_model(plan)))
        if cache:
            with pytest.raises(HftuneError, match=rf"data\.cache_trunk: .*{says}"), context:
                pass
        else:
            with context:
                pass
    told = "frozen layers run in every step: " in capsys.readouterr().err
    assert told == (sections != {"method": "full"})
    assert not own_cache.exists()


@pytest.mark.parametrize(
    ("cache", "epochs", "config", "says"),
    [
        (None, 1, {}, ""),
        (None, 2, {}, "2 of 2 layers, frozen: run once for 54 rows, 0 MiB"),
        (False, 2, {}, ""),
        (True, 1, {}, "2 of 2 layers, frozen: run once for 54 rows"),
        (None, 2, DROPOUT, "frozen layers run in every step: they draw dropout in training; "
                           "data.cache_trunk: true runs them once and without it"),
        (True, 2, DROPOUT, "2 of 2 layers, frozen: run once"),
    ],
)  # fmt: skip
def test_it_is_taken_where_it_pays_and_is_exact(
    cache: bool | None,
    epochs: int,
    config: dict,
    says: str,
    recipe: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = {"num_train_epochs": epochs, "eval_strategy": "no"}
    plan = prepare(recipe(cache=cache, config=config, training=training))
    trainer = build_trainer(plan, load_model(plan))
    capsys.readouterr()
    with cached_frozen_layers(plan, trainer):
        pass
    said = " ".join(capsys.readouterr().err.split())
    assert says in said
    assert bool(says) == bool(said)


def test_batches_of_tokens_are_those_of_the_collator(recipe: Make) -> None:
    plan = prepare(recipe())
    model = load_model(plan).model
    tokens, chosen = Tokens(plan.splits.train.dataset, model), [3, 0, 11]
    made = tokens.batch(chosen, 0, torch.device("cpu"))
    expected = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[row] for row in chosen]
    )
    for name, value in made.items():
        assert torch.equal(value, expected[name])
    assert "input_ids" in made
    assert len(list(tokens.digests())) == len(tokens) == 54
    assert np.diff(tokens.starts).tolist() == [
        len(ids) for ids in plan.splits.train.dataset["input_ids"]
    ]
