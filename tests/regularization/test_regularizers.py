# SPDX-License-Identifier: Apache-2.0
"""Noise and dropout of every kind in a run: in every split, resumed, saved, and refused."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, TrainerCallback

import hftune
from hftune import HftuneError, Recipe, RecipeError
from hftune.core.rng import normal_like
from hftune.regularization import REGULARIZATIONS
from hftune.regularization.section import RegularizationSection, regularization_section
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from tests.stop_at import StopAt

SGD = {
    "optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0,
    "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 1, "eval_strategy": "no",
    "save_strategy": "no", "train_sampling_strategy": "sequential", "seed": 5,
}  # fmt: skip


def trained(recipe: Recipe) -> dict[str, Tensor]:
    plan = prepare(recipe)
    model = load_model(plan).model.double()
    build_trainer(plan, LoadedModel(model)).train()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def start(recipe: Recipe, rows: int = 8) -> tuple[Any, dict[str, Tensor], Tensor]:
    """The model as a run begins with it, in float64, and its first rows."""
    plan = prepare(recipe)
    model: Any = load_model(plan).model.double()
    batch = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[i] for i in range(rows)]
    )
    return model, batch, batch.pop("labels")


def gradient(model: Any, batch: Any, labels: Tensor) -> dict[str, Tensor]:
    nn.functional.cross_entropy(model(**batch).logits, labels).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(("rows", "groups"), [(8, 1), (2, 4)])
def test_a_step_from_the_gradient_at_noisy_weights(
    rows: int, groups: int, make_recipe: Callable[..., Recipe]
) -> None:
    """Seed 5, step 0, however the step is split: the noise is gone when the optimizer steps."""
    training = {**SGD, "per_device_train_batch_size": rows, "gradient_accumulation_steps": groups}
    recipe = make_recipe(training=training, regularization={"weight_noise": 0.05})
    model, batch, labels = start(recipe)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(normal_like(parameter, 5, "weight_noise", 0, name), alpha=0.05)
    noisy = gradient(model, batch, labels)
    for name, value in trained(recipe).items():
        expected = before[name] - 0.5 * noisy.get(name, torch.zeros(()))
        torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)


def test_without_a_rate_noise_leaves_every_bit(make_recipe: Callable[..., Recipe]) -> None:
    training = {**SGD, "learning_rate": 1e-300, "max_steps": 3}
    noise = {"weight_noise": {"std": 0.1, "params": ["encoder"]}, "gradient_noise": 1e-3}
    recipe = make_recipe(training=training, regularization=noise)
    before = {name: p.detach() for name, p in start(recipe)[0].named_parameters()}
    for name, value in trained(recipe).items():
        torch.testing.assert_close(value, before[name], atol=1e-200, rtol=0)


def test_noise_comes_after_clipping(make_recipe: Callable[..., Recipe]) -> None:
    """By norm, then by value; then the noise of the whole gradient, once a step."""
    training = {**SGD, "max_grad_norm": 0.1, "max_grad_value": 0.003,
                "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}  # fmt: skip
    recipe = make_recipe(training=training, regularization={"gradient_noise": 0.01})
    model, batch, labels = start(recipe)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    plain = gradient(model, batch, labels)
    norm = math.sqrt(sum(float(value.square().sum()) for value in plain.values()))
    for name, value in trained(recipe).items():
        clipped = (plain[name] * 0.1 / (norm + 1e-6)).clamp(-0.003, 0.003)
        noise = 0.1 * normal_like(clipped, 5, "gradient_noise", 0, name)
        expected = before[name] - 0.5 * (clipped + noise)
        torch.testing.assert_close(value, expected, atol=1e-8, rtol=0)


#: What draws, all of it together, and SAM, which computes each gradient twice.
DRAWING: dict[str, dict[str, Any]] = {
    "all": {
        "regularization": {
            "dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.3, "drop_connect": 0.1,
            "weight_noise": 0.01, "gradient_noise": 1e-4,
        },
        "loss": {"name": "mixup", "per": "row"},
    },
    "sam": {"regularization": {"dropout": 0.1, "sam": 0.1}, "loss": "mixup"},
}  # fmt: skip


@pytest.mark.parametrize("what", DRAWING)
def test_a_resumed_run_ends_with_the_same_bits(
    what: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Stopped in the middle of an epoch; the saved model is a plain one."""
    training = {"max_steps": 5, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2,
                "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
                "learning_rate": 1e-2, "neftune_noise_alpha": 5.0}  # fmt: skip
    if what == "all":
        training["activation_checkpointing"] = True
    saved = []
    for name in ("whole", "again"):
        folder = tmp_path / name
        recipe = make_recipe(training={**training, "output_dir": str(folder)}, **DRAWING[what])
        if name == "again":
            with pytest.raises(KeyboardInterrupt):
                hftune.train(recipe, callbacks=[StopAt(3)])
            recipe = Recipe.load(folder / "recipe.yaml")
        run = hftune.train(recipe, resume=name == "again")
        saved.append(load_file(run.model_path / "model.safetensors"))
        model = AutoModelForSequenceClassification.from_pretrained(run.model_path)
        assert model.config.hidden_dropout_prob == 0.1
        assert "neftune_noise_alpha" not in (run.model_path / "config.json").read_text()
        hooks = [hook for m in run.model.modules() for hook in m._forward_hooks.values()]
        assert not any(hook.__module__.startswith("hftune") for hook in hooks)
        assert not any("forward" in vars(m) for m in run.model.modules())
    assert saved[0].keys() == saved[1].keys() == model.state_dict().keys()
    for name, value in saved[0].items():
        assert torch.equal(value, saved[1][name]), name


@pytest.mark.parametrize("method", ["full", "lora", "bottleneck"])
def test_neftune_is_transformers_own(method: str, make_recipe: Callable[..., Recipe]) -> None:
    """Uniform within alpha / sqrt(T * D), with the T of the padded batch; off in evaluation and
    gone afterwards, also under PEFT."""
    training = {**SGD, "neftune_noise_alpha": 5.0, "eval_strategy": "steps", "eval_steps": 1,
                "max_steps": 2}  # fmt: skip
    plan = prepare(make_recipe(training=training, method=method))
    model: Any = load_model(plan).model
    trainer = build_trainer(plan, LoadedModel(model))
    table: Any = trainer.model.get_input_embeddings()  # type: ignore[union-attr]
    seen: list[tuple[bool, Tensor]] = []

    class Look(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            """NEFTune's own hook is there by now, and this one looks behind it."""
            table.register_forward_hook(look)

    def look(module: Any, inputs: Any, output: Tensor) -> None:
        words = nn.functional.embedding(inputs[0], module.weight)
        seen.append(
            (module.training, (output.detach() - words.detach()) * math.sqrt(words[0].numel()) / 5)
        )

    trainer.add_callback(Look())
    trainer.train()
    noise = [apart.abs() for training_mode, apart in seen if training_mode]
    assert len(noise) == 2
    for apart in noise:
        assert 0.95 < float(apart.max()) < 1 + 1e-5
        assert float(apart.mean()) == pytest.approx(0.5, abs=0.03)
    assert all(not apart.any() for training_mode, apart in seen if not training_mode)
    assert len(seen) > 2
    assert len(table._forward_hooks) == 1  # the one above
    assert not [name for name in vars(table) if "neftune" in name]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_dropout_holds_for_the_loaded_model(
    method: str, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe(method=method, regularization={"dropout": 0.3, "attention_dropout": 0.2})
    model = load_model(prepare(recipe)).model
    rates = {
        name.rpartition(".")[2]: module.p
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and "attention.self" in name
    }
    assert rates == {"dropout": 0.2}
    others = {m.p for n, m in model.named_modules()
              if isinstance(m, nn.Dropout) and "attention.self" not in n}  # fmt: skip
    assert others == {0.3}


#: Key -> a value of it.
VALUES: dict[str, Any] = {
    "weight_averaging": "ema", "l1": 0.1, "l2": 0.1, "l2_sp": 0.1, "dropout": 0.2,
    "attention_dropout": 0.2, "drop_path": 0.2, "drop_connect": 0.2, "weight_noise": 0.01,
    "gradient_noise": 0.01, "sam": 0.05, "adversarial": 1.0, "freeze_batch_norm": True,
}  # fmt: skip
#: Optimizer and method -> the keys that it does not go with.
REFUSED = {
    ("galore_adamw_layerwise", "full"): {"weight_noise", "gradient_noise", "sam"},
    ("lbfgs", "full"): {"gradient_noise", "sam"},
    ("schedule_free_adamw", "full"): {"weight_averaging"},
    ("adamw_torch", "bitfit"): {"l1", "l2", "drop_connect"},
    ("adamw_torch", "prune"): {"weight_averaging", "weight_noise", "sam"},
}  # fmt: skip


@pytest.mark.parametrize(("optimizer", "method"), REFUSED)
@pytest.mark.parametrize("key", REGULARIZATIONS)
def test_a_key_is_refused_by_what_it_does(key: str, optimizer: str, method: str) -> None:
    sections = {
        "task": "text-classification", "model": "x", "data": "x", "method": method,
        "regularization": {key: VALUES[key]}, "training": {"optim": optimizer},
    }  # fmt: skip
    if key in REFUSED[optimizer, method]:
        with pytest.raises(RecipeError, match=rf"regularization\.{key}:"):
            Recipe(**sections)
    else:
        assert list(Recipe(**sections).regularization.given()) == [key]


def test_the_section_has_the_keys_of_the_table() -> None:
    fields = dataclasses.fields(RegularizationSection)
    assert [field.name for field in fields] == list(REGULARIZATIONS) == list(VALUES)
    section = regularization_section(VALUES)
    assert section.penalties == {"l1": 0.1, "l2": 0.1, "l2_sp": 0.1}


def test_the_resolved_recipe_says_what_was_said(make_recipe: Callable[..., Recipe]) -> None:
    said = {"sam": {"rho": 0.05, "adaptive": True}, "drop_connect": 0.1, "dropout": 0}
    recipe = make_recipe(regularization=said)
    written = YAML(typ="safe").load(recipe.to_yaml())["regularization"]
    assert written == {**said, "drop_connect": {"p": 0.1}}
    assert Recipe(**YAML(typ="safe").load(recipe.to_yaml())).regularization == recipe.regularization


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"regularization": {"dropout": 1.0}}, "regularization.dropout: must be below 1"),
        ({"regularization": {"drop_out": 0.1}}, "did you mean dropout"),
        ({"regularization": {"sam": -1}}, "must be above 0"),
        ({"regularization": {"sam": {"rho": 0.1, "eta": 1}}}, "regularization.sam.eta: unknown"),
        ({"regularization": {"sam": {"adaptive": True}}}, "regularization.sam.rho: missing"),
        ({"regularization": {"weight_noise": "much"}}, "regularization.weight_noise: expected"),
        ({"regularization": {"sam": 0.1, "weight_noise": 0.1}}, "take one"),
        ({"regularization": {"adversarial": 1.0}, "loss": "r_drop"}, "change rows by themselves"),
        ({"regularization": {"adversarial": 1.0}, "distillation": "t"}, "no answer for texts"),
        ({"regularization": {"adversarial": 1.0}, "method": "p_tuning"}, "beside virtual tokens"),
        ({"regularization": {"sam": 0.1}, "training": {"fp16": True}}, "take bf16"),
        ({"regularization": {"sam": 0.1}, "training": {"optim": "lbfgs"}}, "gradients of its own"),
        ({"regularization": {"weight_noise": 0.1}, "training": {"optim": "lomo"}}, "inside the ba"),
        ({"regularization": {"sam": 0.1}, "method": "relora"}, "set weights between steps"),
        ({"regularization": {"drop_connect": 0.1}, "method": "lora"}, "method.lora_dropout"),
        ({"regularization": {"freeze_batch_norm": True}, "method": "probe"}, "no Trainer runs"),
        ({"regularization": {"dropout": 0.1},
          "model": {"path": "x", "config": {"hidden_dropout_prob": 0.2}}}, "say it once"),
        ({"loss": "mixup", "task": "token-classification"}, "mixup goes with text-classification"),
        ({"loss": "mixup", "task": "text-generation"}, "mixup goes with text-classification only"),
        ({"loss": "mixup", "training": {"per_device_train_batch_size": 1}}, "one row has no other"),
        ({"loss": {"name": "mixup", "alpha": 0}}, "must be above 0"),
        ({"loss": {"name": "mixup", "per": "token"}}, "'token' is not allowed"),
        ({"training": {"neftune_noise_alpha": 5.0}, "method": "prefix_tuning"}, "virtual tokens"),
    ],
)  # fmt: skip
def test_what_a_recipe_is_refused_for(sections: dict[str, Any], says: str) -> None:
    whole = {"task": "text-classification", "model": "x", "data": "x", "method": "full", **sections}
    with pytest.raises(RecipeError, match=says):
        Recipe(**whole)


@pytest.mark.parametrize(
    ("task", "said", "says"),
    [
        ("text-generation", {"dropout": 0.1}, "LlamaConfig has no such dropout"),
        ("text-classification", {"freeze_batch_norm": True}, "has no batch normalization"),
        ("text-classification", {"drop_connect": {"p": 0.1, "modules": ["x"]}}, "'x' fits nothing"),
        ("text-classification", {"weight_noise": {"std": 1, "params": "x("}}, "no regular expre"),
    ],
)  # fmt: skip
def test_what_a_model_is_refused_for(
    task: str, said: dict[str, Any], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    """Before its weights are loaded."""
    with pytest.raises(HftuneError, match=says):
        prepare(make_recipe(task, regularization=said))


def test_a_model_of_ones_own_has_its_own_dropout(make_recipe: Callable[..., Recipe]) -> None:
    model = load_model(prepare(make_recipe())).model
    with pytest.raises(RecipeError, match="drop_path: a model of one's own is taken as it is"):
        prepare(make_recipe(regularization={"drop_path": 0.1}), own_model=model)
    prepare(make_recipe(regularization={"drop_connect": 0.1}), own_model=model)


def test_memory_counts_what_is_kept(make_recipe: Callable[..., Recipe]) -> None:
    """Four bytes for each weight that is moved away and comes back."""
    copies = []
    for said in ({}, {"sam": 0.1}, {"weight_noise": 0.1}, {"gradient_noise": 0.1}):
        plan = prepare(make_recipe(regularization=said))
        model = plan.objective.meta_model
        assert model is not None
        cost = plan.settings.regularization.step_cost(model)
        weights = sum(parameter.numel() for parameter in model.parameters())
        copies.append(cost.bytes_per_weight + cost.other_weights / weights)
    assert copies == [0, 4, 4, 0]


def test_evaluation_reports_the_plain_loss(make_recipe: Callable[..., Recipe]) -> None:
    """That of rows as they are, whatever training mixed."""
    recipe = make_recipe(loss={"name": "mixup", "alpha": 5.0}, training={"max_steps": 2})
    run = hftune.train(recipe)
    said = json.loads((run.path / "metrics.json").read_text())["eval_loss"]
    plan = prepare(make_recipe(training={"output_dir": str(run.path.parent / "other")}))
    batch = plan.objective.task.collator(plan.pretrained.processor)(
        [*plan.splits.validation.dataset]
    )  # type: ignore[union-attr]
    labels = batch.pop("labels")
    with torch.no_grad():
        loss = nn.functional.cross_entropy(run.model(**batch).logits, labels)
    assert said == pytest.approx(float(loss), abs=1e-5)
