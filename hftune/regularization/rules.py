# SPDX-License-Identifier: Apache-2.0
"""Rules of noise, dropout, sharpness-aware steps, penalties and averages of the weights."""

from functools import partial

from hftune.core.rules import RecipeView, Rule, training
from hftune.losses import LOSSES
from hftune.methods import ROWS
from hftune.models.section import ModelSection
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.regularization import AVERAGES, REGULARIZATIONS
from hftune.regularization.section import RegularizationSection

#: Optimizers whose step computes the loss of its batch several times.
CLOSURE = ", ".join(name for name, row in OPTIMIZERS.items() if row.closure)
FADING = ", ".join(name for name, row in AVERAGES.items() if row.decay is not None)
EQUAL = ", ".join(name for name, row in AVERAGES.items() if row.decay is None)
AVERAGING = ", ".join(name for name, row in OPTIMIZERS.items() if row.averages)
#: Methods that train pretrained weights themselves, which can stay close to where they were.
TRAINS_PRETRAINED = ", ".join(
    name for name, row in ROWS.items() if row.trains in ("weights", "biases")
)
SETS_WEIGHTS = ", ".join(name for name, row in ROWS.items() if row.sets_weights)
#: Methods that train the weights of linear layers themselves.
TRAINS_LINEAR = ", ".join(name for name, row in ROWS.items() if row.trains in ("weights", "head"))
#: Losses that read a row twice, or two as one.
OWN_PASSES = [name for name, row in LOSSES.items() if row.own_passes]


def _said(key: str, view: RecipeView) -> bool:
    return getattr(view[RegularizationSection], key) is not None


def _averages(view: RecipeView) -> bool:
    return view[RegularizationSection].weight_averaging is not None


def _penalized(name: str, view: RecipeView) -> bool:
    return name in view[RegularizationSection].penalties


def _in_backward(key: str, view: RecipeView) -> bool:
    return _said(key, view) and view.optimizer_row.in_backward


def _rewrites(key: str, view: RecipeView) -> bool:
    return _said(key, view) and view.method_row.sets_weights


def _said_twice(key: str, view: RecipeView) -> bool:
    return _said(key, view) and any(
        name in view[ModelSection].config for name in REGULARIZATIONS[key].config_fields
    )


REGULARIZATION_RULES = (
    *(
        Rule(
            f"regularization.{key}",
            f"model.config sets it too ({', '.join(row.config_fields[:3])}): say it once",
            partial(_said_twice, key),
        )
        for key, row in REGULARIZATIONS.items()
        if row.config_fields
    ),
    Rule(
        "regularization.drop_connect",
        f"it drops weights of linear layers, which {TRAINS_LINEAR} train; an adapter has a dropout "
        "of its own, such as method.lora_dropout",
        lambda s: _said("drop_connect", s) and s.method_row.trains not in ("weights", "head"),
    ),
    *(
        Rule(
            f"regularization.{key}",
            "this optimizer steps inside the backward pass, where no gradient is left to look at",
            partial(_in_backward, key),
        )
        for key, row in REGULARIZATIONS.items()
        if row.needs_gradient
    ),
    *(
        Rule(
            f"regularization.{key}",
            f"{SETS_WEIGHTS} set weights between steps, which moving them would disturb",
            partial(_rewrites, key),
        )
        for key, row in REGULARIZATIONS.items()
        if row.moves_weights
    ),
    *(
        Rule(
            f"regularization.{key}",
            f"{CLOSURE} computes gradients of its own inside a step, which nothing changes",
            partial(lambda key, s: _said(key, s) and s.optimizer_row.closure, key),
        )
        for key, row in REGULARIZATIONS.items()
        if row.changes_gradient
    ),
    Rule(
        "training.neftune_noise_alpha",
        "beside virtual tokens Transformers does not find the word vectors of most models",
        lambda s: (
            bool(training(s, "neftune_noise_alpha")) and s.method_row.virtual_tokens is not None
        ),
    ),
    Rule(
        "regularization.adversarial",
        f"{', '.join(OWN_PASSES)} change rows by themselves: take one of the two",
        lambda s: _said("adversarial", s) and s.loss_row is not None and s.loss_row.own_passes,
    ),
    Rule(
        "regularization.adversarial",
        "beside virtual tokens PEFT reads the words in a way of its own",
        lambda s: _said("adversarial", s) and s.method_row.virtual_tokens is not None,
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
    Rule(
        "regularization.weight_averaging",
        f"{SETS_WEIGHTS} set weights between steps, which an average would undo",
        lambda s: (
            s.method_row.sets_weights and (_averages(s) or s.optimizer_row.average_key is not None)
        ),
    ),
    Rule(
        "regularization.weight_averaging",
        f"the optimizer averages the weights itself: {AVERAGING}",
        lambda s: _averages(s) and s.optimizer_row.averages,
    ),
    Rule(
        "regularization.l2_sp",
        f"only {TRAINS_PRETRAINED} train pretrained weights; an adapter begins at 0 and is held "
        "there by l2",
        lambda s: _penalized("l2_sp", s) and s.method_row.trains not in ("weights", "biases"),
    ),
    *(
        Rule(
            f"regularization.{name}",
            "this method trains biases, and a penalty counts weights of two dimensions or more; "
            "take l2_sp",
            partial(lambda name, s: _penalized(name, s) and s.method_row.trains == "biases", name),
        )
        for name, row in REGULARIZATIONS.items()
        if row.penalizes == "matrices"
    ),
    Rule(
        "regularization.weight_averaging",
        f"decay is that of {FADING}; in {EQUAL} all steps count the same",
        lambda s: (
            (averaging := s[RegularizationSection].averaging) is not None
            and averaging.decay is not None
            and AVERAGES[averaging.name].decay is None
        ),
    ),
    Rule(
        "regularization",
        "no Trainer runs for a probe; method.classifier_kwargs takes C, alpha and their like",
        lambda s: s.method_row.fitted and s[RegularizationSection] != RegularizationSection(),
    ),
)
