# SPDX-License-Identifier: Apache-2.0
"""Frozen tensors keep their bits, others move; each turn begins at its step, resumed or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.methods.freeze.method import Freeze, FreezeConfig, trained_layers
from hftune.methods.freeze.unfreezing import Unfreezing, UnfreezingPhases
from hftune.tasks.context import RunContext
from hftune.training.build import build_trainer
from hftune.training.checkpoints import latest_checkpoint
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from tests.stop_at import StopAt


def moved(recipe: Recipe) -> tuple[set[str], Any]:
    """Train; return the names of what is no longer the same, and the Trainer."""
    plan = prepare(recipe)
    model = load_model(plan).model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = build_trainer(plan, LoadedModel(model))
    trainer.train()
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    return changed, trainer


@pytest.mark.parametrize(
    ("options", "trains"),
    [
        ({"freeze_layers": 0}, ("layer.1.", "pooler", "classifier")),
        ({"freeze_layers": "0--1", "freeze_embeddings": False},
         ("embeddings", "pooler", "classifier")),
        ({"train_layers": [-2]}, ("embeddings", "layer.0.", "pooler", "classifier")),
        ({"freeze_embeddings": True}, ("layer.", "pooler", "classifier")),
        ({"freeze_modules": [r"query", "pooler"], "freeze_layers": "0"},
         ("layer.1.attention.self.key", "layer.1.attention.self.value", "layer.1.attention.output",
          "layer.1.intermediate", "layer.1.output", "classifier")),
        ({"train_modules": r".*LayerNorm"}, ("LayerNorm", "classifier")),
        ({"train_modules": r".*layer\.0\..*bias", "freeze_layers": "0-1",
          "freeze_modules": ["classifier", "pooler"]}, ("layer.0",)),
    ],
)  # fmt: skip
def test_what_is_frozen_keeps_its_bits(
    make_recipe: Callable[..., Recipe], options: dict[str, Any], trains: tuple[str, ...]
) -> None:
    training = {"learning_rate": 0.1, "max_steps": 1, "warmup_steps": 0, "eval_strategy": "no"}
    changed, trainer = moved(make_recipe(method={"name": "freeze", **options}, training=training))
    model = trainer.model
    wanted = {name for name, _ in model.named_parameters() if any(part in name for part in trains)}
    if "bias" in str(options.get("train_modules")):
        wanted = {name for name in wanted if name.endswith("bias")}
    key_bias = {name for name in wanted if name.endswith("key.bias")}  # softmax does not see it
    if "train_modules" in options and "LayerNorm" not in str(options):
        assert changed <= wanted
    else:
        assert changed | key_bias == wanted
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(model.get_parameter(name)) for name in wanted}


@pytest.mark.parametrize(
    ("task", "options", "trains"),
    [
        ("text-generation", {"freeze_layers": 0}, ("layers.1.", "model.norm", "lm_head")),
        # Numbers run through the encoder (0, 1) and the decoder (2, 3).
        ("text2text-generation", {"freeze_layers": "0-2"},
         ("decoder.block.1.", "final_layer_norm", "lm_head")),
        ("token-classification", {"train_layers": -1}, ("layer.1.", "classifier")),
    ],
)  # fmt: skip
def test_other_architectures(
    make_recipe: Callable[..., Recipe], task: str, options: dict[str, Any], trains: tuple[str, ...]
) -> None:
    plan = prepare(make_recipe(task, method={"name": "freeze", **options}))
    assert plan.objective.meta_model is not None
    names = {name for name, p in plan.objective.meta_model.named_parameters() if p.requires_grad}
    wanted = {
        name
        for name, _ in plan.objective.meta_model.named_parameters()
        if name.startswith(trains) or any(f".{part}" in name for part in trains)
    }
    wanted -= {name for name in wanted if "block" in name and "decoder.block.1." not in name}
    assert names == wanted


@pytest.mark.parametrize(
    ("given", "trains"),
    [
        ({"freeze_layers": "0-8"}, {9, 10, 11}),
        ({"freeze_layers": 3}, {0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11}),
        ({"freeze_layers": [0, "2-3", "-1"]}, {1, 4, 5, 6, 7, 8, 9, 10}),
        ({"train_layers": "-4--1"}, {8, 9, 10, 11}),
        ({"train_layers": [-1, "-3"]}, {9, 11}),
        ({"train_layers": "5--5"}, {5, 6, 7}),
        ({"train_layers": []}, set()),
        ({}, set(range(12))),
    ],
)
def test_numbers_of_layers(given: dict[str, Any], trains: set[int]) -> None:
    assert trained_layers(FreezeConfig(**given), 12, "BertModel") == trains


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_layers": "0-2"}, "no layer 2: BertForSequence.* has 2 layers, 0 to 1"),
        ({"train_layers": -3}, "there is no layer -3"),
        ({"freeze_layers": "1-0"}, "1-0 ends below its beginning"),
        ({"freeze_layers": "0..1"}, "neither a layer nor a range"),
        ({"freeze_layers": 0, "train_layers": 1}, "not both"),
        ({"freeze_layers": 1.5}, "freeze_layers: expected"),
        ({}, "nothing is frozen"),
        ({"freeze_layers": []}, "nothing is frozen"),
        ({"freeze_layers": "0-1", "freeze_modules": ["pooler", "classifier"]},
         "everything is frozen"),
        ({"freeze_modules": ["pooler", "decoder"]}, "'decoder' fits nothing in Bert"),
        ({"freeze_layers": 0, "freeze_modules": r".*layer\.0.*"}, "all of it is frozen anyway"),
        ({"freeze_layers": 0, "train_modules": ["pooler"]}, "all of it is trained anyway"),
        ({"unfreeze_every": 4}, "after 8 steps, and the run has 8"),
        ({"unfreeze_every": "epoch"}, "after 14 steps, and the run has 8"),
        ({"unfreeze_every": "week"}, "unfreeze_every: 'week' is not allowed"),
        ({"unfreeze_every": 0}, "unfreeze_every: must be above 0"),
        ({"head_only_steps": 8}, "after 8 steps, and the run has 8"),
        ({"head_only_steps": 2, "freeze_modules": ["classifier"]}, "no head that could train"),
        ({"head_only_steps": 0, "unfreeze_every": 2, "train_layers": 1}, "nothing to unfreeze"),
        ({"freeze_layers": 0, "head_only_rate": 9}, "only with head_only_steps or unfreeze_every"),
    ],
)  # fmt: skip
def test_refused(make_recipe: Callable[..., Recipe], options: Any, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        prepare(make_recipe(method={"name": "freeze", **options}, training={"max_steps": 8}))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"ddp_find_unused_parameters": False}, "a schedule of freeze needs it"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "above a frozen bottom"),
        ({"lr_scheduler_type": "cosine_with_restarts"}, "a schedule that it can scale"),
    ],
)
def test_training_that_does_not_go_with_a_schedule(
    make_recipe: Callable[..., Recipe], training: dict[str, Any], message: str
) -> None:
    method = {"name": "freeze", "unfreeze_every": 2, "head_only_rate": 20}
    with pytest.raises(HftuneError, match=message):
        make_recipe(method=method, training=training)


def test_the_turns_of_a_run() -> None:
    """Six layers and a head in 100 steps, counted by hand."""
    context = RunContext(task="x", num_training_steps=100, steps_per_epoch=12)
    every = set(range(7))

    def begins(turns: set[int], **given: Any) -> list[int]:
        phases = UnfreezingPhases.of(Unfreezing(**given), turns, context)
        return [next(step for step in range(101) if phases.turn(step) >= turn) for turn in every]

    assert begins(every, unfreeze_every=10) == [0, 10, 20, 30, 40, 50, 60]
    assert begins(every, unfreeze_every=0.055) == [0, 6, 12, 18, 24, 30, 36]
    assert begins(every, unfreeze_every="epoch") == [0, 12, 24, 36, 48, 60, 72]
    assert begins(every, unfreeze_every=10, head_only_steps=0.25) == [0, 25, 35, 45, 55, 65, 75]
    assert begins(every, unfreeze_every=10, head_only_steps=0) == [0, 0, 10, 20, 30, 40, 50]
    assert begins(every, head_only_steps=0.3) == [0, 30, 30, 30, 30, 30, 30]
    assert begins(every - {0}, unfreeze_every=10) == [0, 0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"unfreeze_every": 17}, 16),  # 6 * 17 = 102, 6 * 16 = 96
        ({"unfreeze_every": 17, "head_only_steps": 15}, 16),  # 15 + 5 * 17 = 100
        ({"unfreeze_every": "epoch"}, 16),
    ],
)
def test_a_schedule_longer_than_the_run_names_one_that_fits(
    given: dict[str, Any], fits: int
) -> None:
    context = RunContext(task="x", num_training_steps=100, steps_per_epoch=40)
    with pytest.raises(HftuneError, match="the run has 100") as raised:
        UnfreezingPhases.of(Unfreezing(**given), set(range(7)), context)
    assert raised.value.hint == f"train longer, or unfreeze_every: {fits}"
    UnfreezingPhases.of(Unfreezing(**{**given, "unfreeze_every": fits}), set(range(7)), context)
    with pytest.raises(HftuneError, match="the run has 100"):
        UnfreezingPhases.of(
            Unfreezing(**{**given, "unfreeze_every": fits + 1}), set(range(7)), context
        )


def test_a_stream_has_no_epochs() -> None:
    context = RunContext(task="x", num_training_steps=100)
    with pytest.raises(HftuneError, match="no epochs"):
        UnfreezingPhases.of(Unfreezing(unfreeze_every="epoch"), {0, 1, 2}, context)


class Changes(TrainerCallback):
    """Notes with which step each tensor changes for the first time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.first: dict[str, int] = {}
        self.start = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, value in self._weights().items():
            if not torch.equal(value, self.start[name]):
                self.first.setdefault(name, state.global_step)


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ({"unfreeze_every": 2},
         {"classifier": 1, "pooler": 3, "layer.1.": 3, "layer.0.": 5, "embeddings": 5}),
        ({"head_only_steps": 3},
         {"classifier": 1, "pooler": 4, "layer.1.": 4, "layer.0.": 4, "embeddings": 4}),
        ({"unfreeze_every": "epoch", "train_layers": -1},
         {"classifier": 1, "pooler": 4, "layer.1.": 4, "layer.0.": None, "embeddings": None}),
    ],
)  # fmt: skip
def test_each_turn_begins_at_its_step(
    make_recipe: Callable[..., Recipe], options: dict[str, Any], begins: dict[str, int | None]
) -> None:
    """27 rows a half in batches of 18: three steps an epoch; recomputed activations as well."""
    training = {
        "max_steps": 6, "learning_rate": 1e-2, "warmup_steps": 0, "eval_strategy": "no",
        "per_device_train_batch_size": 18, "activation_checkpointing": True, "weight_decay": 0.5,
    }  # fmt: skip
    plan = prepare(make_recipe(method={"name": "freeze", **options}, training=training))
    model = load_model(plan).model
    changes = Changes(model)
    build_trainer(plan, LoadedModel(model), [changes]).train()
    for name, _ in model.named_parameters():
        if name.endswith("key.bias") or "position_embeddings" in name:
            continue  # its gradient is rounding alone
        wanted = next(step for part, step in begins.items() if part in name)
        assert changes.first.get(name) == wanted, name


def test_the_head_alone_has_its_own_rate(make_recipe: Callable[..., Recipe]) -> None:
    method = {"name": "freeze", "head_only_steps": 2, "head_only_rate": 20}
    training = {"max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 0}
    run = hftune.train(make_recipe(method=method, training=training))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in log if "loss" in line]
    assert rates == pytest.approx([20e-3, 20e-3 * 0.75, 1e-3 * 0.5, 1e-3 * 0.25])


def test_resumed_in_any_phase_it_ends_with_the_same_bits(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The head until step 2, the top layer joins, the rest from step 4 on."""

    def recipe(name: str) -> Recipe:
        training = {
            "output_dir": str(tmp_path / name), "max_steps": 6, "learning_rate": 1e-2,
            "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1,
            "save_total_limit": 9, "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
        }  # fmt: skip
        model = {"path": make_recipe().model.path, "config": {"hidden_dropout_prob": 0.1}}
        method = {"name": "freeze", "unfreeze_every": 2, "head_only_rate": 5}
        return make_recipe(training=training, method=method, model=model)

    whole = hftune.train(recipe("whole"))
    expected = load_file(whole.model_path / "model.safetensors")
    for stop, trained in ((2, 2), (4, 20), (6, 41)):  # continue from 1, 3 and 5
        with pytest.raises(KeyboardInterrupt):
            hftune.train(recipe(str(stop)), callbacks=[StopAt(stop)])
        stopped = Run(tmp_path / str(stop))
        checkpoint = latest_checkpoint(stopped.checkpoints)
        assert checkpoint.name == f"checkpoint-{stop - 1}"
        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert len(state["state"]) == trained  # of what has trained, and of nothing else
        resumed = hftune.train(stopped.recipe, resume=True)
        weights = load_file(resumed.model_path / "model.safetensors")
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected), stop


def test_the_layers_of_a_convolutional_model_are_its_stages() -> None:
    """It has no table of tokens."""
    from tests.methods.tiny_models import build

    context = RunContext(task="image-classification")
    model = Freeze(train_modules=["classifier"]).apply(build("convnext"), context)
    trains = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trains == {"classifier.weight", "classifier.bias"}
    model = Freeze(freeze_layers=0).apply(build("convnext"), context)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    first = {name for name, _ in model.named_parameters() if ".stages.0." in name}
    assert frozen == first
