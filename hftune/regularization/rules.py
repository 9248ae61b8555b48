# SPDX-License-Identifier: Apache-2.0
"""Rules of noise, dropout of every kind, and sharpness-aware steps."""

from functools import partial

from hftune.core.rules import RecipeView, Rule, training
from hftune.models.section import ModelSection
from hftune.optimization.optimizers import DEFAULT as ADAMW
from hftune.optimization.rules import IN_BACKWARD, REWRITES_WEIGHTS
from hftune.regularization.fields import FIELDS
from hftune.regularization.section import RegularizationSection

#: Methods that train the weights of linear layers themselves.
TRAINS_LINEAR = ("full", "freeze", "head_only")

#: Losses that read a row twice, or two as one.
OTHER_ROWS = ("mixup", "r_drop", "supervised_contrastive")

#: Methods whose model is wrapped around virtual tokens.
VIRTUAL_TOKENS = ("prompt_tuning", "p_tuning", "prefix_tuning")


def _said(key: str, view: RecipeView) -> bool:
    return getattr(view[RegularizationSection], key) is not None


def _optim(view: RecipeView) -> str:
    return str(training(view, "optim", ADAMW))


def _in_backward(key: str, view: RecipeView) -> bool:
    return _said(key, view) and _optim(view) in IN_BACKWARD


def _rewrites(key: str, view: RecipeView) -> bool:
    return _said(key, view) and view.method.name in REWRITES_WEIGHTS


def _said_twice(key: str, view: RecipeView) -> bool:
    return _said(key, view) and any(name in view[ModelSection].config for name in FIELDS[key])


REGULARIZATION_RULES = (
    *(
        Rule(
            f"regularization.{key}",
            f"model.config sets it too ({', '.join(names[:3])}): say it once",
            partial(_said_twice, key),
        )
        for key, names in FIELDS.items()
    ),
    Rule(
        "regularization.drop_connect",
        f"it drops weights of linear layers, which {', '.join(TRAINS_LINEAR)} train; an adapter "
        "has a dropout of its own, such as method.lora_dropout",
        lambda s: _said("drop_connect", s) and s.method.name not in TRAINS_LINEAR,
    ),
    *(
        Rule(
            f"regularization.{key}",
            "this optimizer steps inside the backward pass, where no gradient is left to look at",
            partial(_in_backward, key),
        )
        for key in ("gradient_noise", "weight_noise", "sam")
    ),
    *(
        Rule(
            f"regularization.{key}",
            f"{', '.join(REWRITES_WEIGHTS)} set weights between steps, which moving them would "
            "disturb",
            partial(_rewrites, key),
        )
        for key in ("weight_noise", "sam")
    ),
    *(
        Rule(
            f"regularization.{key}",
            "lbfgs computes gradients of its own inside a step, which nothing changes",
            partial(lambda key, s: _said(key, s) and _optim(s) == "lbfgs", key),
        )
        for key in ("gradient_noise", "sam")
    ),
    Rule(
        "training.neftune_noise_alpha",
        "beside virtual tokens Transformers does not find the word vectors of most models",
        lambda s: bool(training(s, "neftune_noise_alpha")) and s.method.name in VIRTUAL_TOKENS,
    ),
    Rule(
        "regularization.adversarial",
        f"{', '.join(OTHER_ROWS)} change rows by themselves: take one of the two",
        lambda s: _said("adversarial", s) and s.loss is not None and s.loss.name in OTHER_ROWS,
    ),
    Rule(
        "regularization.adversarial",
        "beside virtual tokens PEFT reads the words in a way of its own",
        lambda s: _said("adversarial", s) and s.method.name in VIRTUAL_TOKENS,
    ),
    Rule(
        "regularization.sam",
        "weight_noise moves the weights at random, sam to where the loss is higher: take one",
        lambda s: _said("sam", s) and _said("weight_noise", s),
    ),
    Rule(
        "regularization.sam",
        "the scaling of fp16 allows one gradient a step, and sam needs two; take bf16",
        lambda s: _said("sam", s) and bool(training(s, "fp16")),
    ),
)
