# SPDX-License-Identifier: Apache-2.0
"""The table of what goes with what, and the docs page made of it."""

from pathlib import Path

import pytest

from hftune import Recipe, RecipeError
from hftune.recipe.compatibility import RULES, compatibility_page

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_docs_page_is_the_table() -> None:
    assert PAGE.read_text() == compatibility_page()


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"method": "adaption_prompt"}, "goes with text-generation only"),
        ({"model": {"path": "x", "classifier_pooling": "mean"}, "method": "prompt_tuning"},
         "cannot see the virtual tokens"),
        ({"model": {"path": "x", "attn_implementation": "flash_attention_2"}},
         "flash-attn is not installed: pip install 'hftune.flash.'"),
        ({"model": {"path": "x", "attn_implementation": "flash_attn_2"}},
         "did you mean flash_attention_2"),
        ({"training": {"use_liger_kernel": True}}, "pip install 'hftune.liger.'"),
        ({"training": {"liger_kernel_config": {"rope": False}}}, "only with use_liger_kernel"),
        ({"training": {"use_liger_kernel": True, "liger_kernel_config": {"cross_entropy": True}}},
         "would never be called"),
        ({"method": {"name": "lora", "init_lora_weights": "pissa_niter_4"}}, "is not allowed"),
        ({"method": {"name": "lora", "init_lora_weights": "eva"}}, "compute their start from data"),
        ({"method": "adalora", "training": {"load_best_model_at_end": True}}, "changes its ranks"),
        ({"training": {"eval_steps": 3}}, "only with eval_strategy: steps"),
        ({"training": {"save_steps": 100}}, "only with save_strategy: steps"),
        ({"training": {"optim_args": "momentum"}}, "it is written key=value"),
        ({"training": {"optim_args": "momentum=0.9,nesterov"}}, "it is written key=value"),
        ({"training": {"optim_args": "momentum=0.9,"}}, "it is written key=value"),
        ({"training": {"optim_args": "momentum=0.9=1"}}, "it is written key=value"),
        ({"training": {"save_strategy": "best", "eval_strategy": "no"}}, "best needs evaluation"),
        ({"data": {"path": "x", "validation": "y", "validation_size": 0.2}}, "nothing is split"),
        ({"data": {"path": "x", "validation_size": 0, "max_eval_samples": 3}}, "no validation"),
        ({"loss": {"name": "focal", "beta": 0.9}}, "that of class_weights: effective_number"),
        ({"loss": {"name": "focal", "beta": 0.9, "class_weights": "inverse"}}, "effective_number"),
        ({"loss": "focal", "training": {"label_smoothing_factor": 0.1}}, "cross_entropy, r_drop"),
        ({"loss": "supervised_contrastive", "training": {"per_device_train_batch_size": 1}},
         "one row has no other"),
        ({"loss": {"name": "r_drop", "alpha": 0}}, "must be above 0"),
        ({"loss": {"name": "huber", "delta": -1}}, "must be above 0"),
        ({"loss": {"name": "focal", "gamma": -0.5}}, "must be at least 0"),
        ({"loss": {"name": "focal", "class_weights": "inversed"}}, "did you mean inverse"),
        ({"loss": {"name": "cross_entropy", "class_weights": {"a": None}}}, "loss.class_weights.a"),
        ({"loss": "mse", "task": "text-generation"}, "mse goes with text-classification only"),
        ({"data": {"path": "x", "sampling": "weighted"}}, "the column of the weights"),
        ({"data": {"path": "x", "sampling": {"name": "weighted"}}}, "the column of the weights"),
        ({"data": {"path": "x", "sampling": {"name": "balanced", "column": "w"}}}, "only weighted"),
        ({"data": {"path": "x", "sampling": "balanced"}, "task": "text-generation"},
         "go by the class of a row"),
        ({"data": {"path": "x", "sampling": "balanced"},
          "model": {"path": "x", "config": {"problem_type": "regression"}}}, "class of a row"),
        ({"data": {"path": "x", "curriculum": {"name": "column"}}}, "needs to be told which"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "column": "w"}}}, "by name: col"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "stages": 3}}}, "pacing: staged"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "pacing": "staged",
                                               "start": 0.5}}}, "starts with its first stage"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "duration": 2}}}, "at most 1"),
        ({"data": {"path": "x", "curriculum": "loss"}}, "which a new head does not"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "model": "a"}}}, "of name: loss"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "advance": "plateau"}}},
         "set pacing: staged"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "patience": 2}}}, "plateau"),
        ({"data": {"path": "x", "curriculum": {"name": "length", "pacing": "staged",
                                               "advance": "plateau", "duration": 0.5}}},
         "the metric decides how long"),
        ({"data": {"path": "x", "validation_size": 0,
                   "curriculum": {"name": "length", "pacing": "staged", "advance": "plateau"}}},
         "set training.eval_strategy"),
        ({"data": {"path": "x", "sampling": "balanced", "curriculum": "length"}}, "take one"),
        ({"data": {"path": "x", "sampling": "balanced", "streaming": True}}, "choose from all"),
        ({"data": {"path": [{"path": "x"}], "sampling": {"name": "weighted", "column": "w"}}},
         "sources have weights of their own"),
        ({"data": {"path": "x", "sampling": "oversample"},
          "training": {"train_sampling_strategy": "sequential"}}, "keeps the order of the rows"),
        ({"data": {"path": "x", "curriculum": "length"},
          "training": {"train_sampling_strategy": "group_by_length"}}, "leave it at random"),
        ({"data": {"path": "x", "sampling": "oversample"},
          "loss": {"name": "focal", "class_weights": "balanced"}}, "would weigh all alike"),
        ({"data": {"path": "x", "sampling": "balanced"},
          "loss": {"name": "cross_entropy", "logit_adjustment": 1.0}}, "equally common already"),
        ({"loss": {"name": "cross_entropy", "logit_adjustment": 1.0, "class_weights": "inverse"}},
         "correct for the shares of the classes, too"),
        ({"loss": {"name": "mixup"}, "distillation": "runs/a"}, "r_drop, supervised_contrastive"),
        ({"training": {"optim": "sgd", "optim_args": "momentum=1"}}, "momentum"),
        ({"training": {"optim": "adamw"}}, "did you mean adamw_torch"),
        ({"data": {"path": "x", "sampling": "balanced"}, "method": "probe"}, "method.balance"),
        ({"data": {"path": "x", "curriculum": "length"}, "method": "probe"}, "all rows at once"),
    ],
)  # fmt: skip
def test_conflicts(sections: dict, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hftune.core.rules.find_spec", lambda name: None)
    whole = {"task": "text-classification", "model": "x", "data": "x", **sections}
    with pytest.raises(RecipeError, match=says):
        Recipe(**whole)


@pytest.mark.parametrize(
    "training",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim_args": None},
        {"save_strategy": "steps", "save_steps": 100},
        {"eval_strategy": "steps", "save_steps": 100},
        {"save_strategy": "epoch", "save_steps": 500},  # as a resolved recipe spells it out
    ],
)
def test_what_goes_together(training: dict) -> None:
    Recipe(task="text-classification", model="x", data="x", training=training)


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "cross_entropy", "class_weights": "inverse"},
        {"name": "cross_entropy", "logit_adjustment": 1.0},
        {"name": "cross_entropy", "logit_adjustment": 1.0, "class_weights": [1.0, 5.0]},
        {"name": "focal", "class_weights": "effective_number"},
        {"name": "bce_with_logits", "pos_weight": "balanced"},
    ],
)
def test_what_counts_rows_goes_with_no_stream(loss: dict) -> None:
    data = {"path": "x", "streaming": True, "label_names": ["a", "b"], "validation_size": 0}
    training = {"max_steps": 3}
    with pytest.raises(RecipeError, match="which a stream cannot"):
        Recipe(task="text-classification", model="x", data=data, loss=loss, training=training)
    given = {"name": "focal", "class_weights": {"a": 2.0}}
    Recipe(task="text-classification", model="x", data=data, loss=given, training=training)


def test_every_rule_has_a_key_of_the_schema() -> None:
    from hftune.recipe.json_schema import choice_names, recipe_schema

    schema = recipe_schema()["properties"]
    for rule in RULES:
        section, key, *_ = [*rule.key.split("."), ""]  # fields of a model's config are its own
        part = schema[section]
        if not key:
            continue
        known = part.get("properties") or part["anyOf"][1].get("properties")
        if known is None:
            known = {k for item in choice_names(part).values() for k in item["properties"]}
        assert key in known, rule.key
