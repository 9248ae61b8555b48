# SPDX-License-Identifier: Apache-2.0
"""Rules about distillation."""

from collections.abc import Callable
from functools import partial

from hftune.core.rules import RecipeView, Rule
from hftune.data.section import DataSection
from hftune.distillation.section import OWN_AVERAGE, DistillationSection
from hftune.evaluation.section import EvaluationSection
from hftune.losses import LOSSES
from hftune.models.section import ModelSection
from hftune.regularization import AVERAGES
from hftune.regularization.section import RegularizationSection
from hftune.tasks import TASKS

#: Tasks whose classes are tokens of a vocabulary.
WRITING = [name for name, row in TASKS.items() if row.writes]
#: Losses with forward passes of their own.
OWN_PASSES = [name for name, row in LOSSES.items() if row.own_passes]
WEIGHTS = ("class_weights", "beta", "logit_adjustment", "pos_weight")


def _teaching(
    test: Callable[[RecipeView, DistillationSection], bool],
) -> Callable[[RecipeView], bool]:
    """Return the test of a rule about the section; a recipe without the section passes."""

    def broken(view: RecipeView) -> bool:
        section = view.get(DistillationSection)
        return section is not None and bool(test(view, section))

    return broken


def _weighs_labels(view: RecipeView) -> bool:
    """Tell whether the recipe sets weights or smoothing of labels."""
    loss, row, smoothed = view.loss, view.loss_row, view.training.get("label_smoothing_factor")
    if loss is None or row is None or smoothed:
        return bool(smoothed)
    return not row.plain or any(loss.options.get(key) is not None for key in WEIGHTS)


def _keeps_ema(view: RecipeView) -> bool:
    """Tell whether the recipe keeps an exponential average of the weights."""
    averaging = view[RegularizationSection].averaging
    return averaging is not None and AVERAGES[averaging.name].decay is not None


def _layer_rules(key: str) -> tuple[Rule, ...]:
    """Return the rules of ``hidden_states`` or of ``attentions``."""

    def layers(section: DistillationSection) -> dict[int, int]:
        found: dict[int, int] = getattr(section, key)
        return found

    name = f"distillation.{key}"
    return (
        Rule(
            name,
            "it maps a layer of the student, a whole number from 0, to one of the teacher",
            _teaching(lambda _, d: any(type(n) is not int or n < 0 for n in layers(d))),
        ),
        Rule(
            name,
            "an encoder with a decoder has two stacks of layers",
            _teaching(lambda s, d: bool(layers(d)) and s.task_row.encoder_decoder),
        ),
        Rule(
            name,
            "layers are matched with those of one teacher",
            _teaching(lambda _, d: bool(layers(d)) and len(d.teachers) > 1),
        ),
        Rule(
            name,
            "the average of the student's weights has the student's layers already",
            _teaching(lambda _, d: bool(layers(d)) and d.is_own_average),
        ),
        Rule(
            name,
            "virtual tokens stand among the student's, and the teacher has none",
            _teaching(lambda s, d: bool(layers(d)) and s.method_row.virtual_tokens is not None),
        ),
        Rule(
            f"{name}_weight",
            f"it is that of {key}",
            _teaching(lambda _, d: getattr(d, f"{key}_weight") is not None and not layers(d)),
        ),
    )


def _unlabelled(view: RecipeView, key: str) -> bool:
    data = view[DataSection]
    return data.unlabelled is not None and getattr(data, key) is not None


DISTILLATION_RULES = (
    Rule(
        "distillation",
        "a probe is fitted on labels, and a teacher's answers are none",
        _teaching(lambda s, _: s.method_row.fitted),
    ),
    Rule(
        "distillation.teacher",
        "name a teacher",
        _teaching(lambda _, d: not d.is_own_average and not (d.teachers and all(d.teachers))),
    ),
    Rule(
        "distillation.teacher",
        f"{OWN_AVERAGE} teaches alone, not in a list",
        _teaching(lambda _, d: OWN_AVERAGE in d.teachers),
    ),
    Rule(
        "distillation.teacher",
        f"{OWN_AVERAGE} is the average that fades: set regularization.{OWN_AVERAGE}: ema",
        _teaching(lambda s, d: d.is_own_average and not _keeps_ema(s)),
    ),
    Rule(
        "distillation.cache",
        "the average of the student's weights changes with every step, so nothing can be kept",
        _teaching(lambda _, d: d.cache is True and d.is_own_average),
    ),
    Rule(
        "loss",
        f"{', '.join(OWN_PASSES)} run a batch in a way that a teacher's answers do not fit",
        _teaching(lambda s, _: s.loss_row is not None and s.loss_row.own_passes),
    ),
    Rule(
        "distillation.alpha",
        "with 0 the teacher's answers count nothing; take a higher one, or hidden_states or "
        "attentions",
        _teaching(lambda _, d: d.alpha == 0 and not d.looks_inside),
    ),
    Rule(
        "distillation.alpha",
        "with 1 the labels count nothing, and so do the options of loss and label smoothing",
        _teaching(lambda s, d: not d.counts_labels and _weighs_labels(s)),
    ),
    Rule(
        "distillation.warmup_steps",
        "with alpha 0 there is nothing that could grow",
        _teaching(lambda _, d: d.alpha == 0 and d.warmup_steps > 0),
    ),
    Rule(
        "distillation.top_k",
        f"it goes with {' and '.join(WRITING)}, whose classes are a vocabulary",
        _teaching(lambda s, d: d.top_k is not None and not s.task_row.writes),
    ),
    Rule(
        "distillation.cache",
        "every token's answer for a whole vocabulary is too much to keep: set top_k",
        _teaching(lambda s, d: d.cache is True and s.task_row.writes and d.top_k is None),
    ),
    Rule(
        "distillation.cache",
        "hidden_states and attentions are not kept, so the teacher runs in every step",
        _teaching(lambda _, d: d.cache is True and d.looks_inside),
    ),
    Rule(
        "distillation.cache",
        "a stream is read as it comes, so nothing can be kept for its rows",
        _teaching(lambda s, d: d.cache is True and s[DataSection].streaming),
    ),
    *_layer_rules("hidden_states"),
    *_layer_rules("attentions"),
    Rule(
        "distillation.attentions",
        "only model.attn_implementation: eager tells its attention",
        _teaching(
            lambda s, d: bool(d.attentions) and s[ModelSection].attn_implementation != "eager"
        ),
    ),
    Rule(
        "evaluation.prior",
        "what a teacher says of the classes' shares is not known",
        _teaching(lambda s, _: s[EvaluationSection].prior is not None),
    ),
    Rule(
        "data.unlabelled",
        "only a teacher can teach rows without labels: name one in distillation",
        lambda s: s[DataSection].unlabelled is not None and s.get(DistillationSection) is None,
    ),
    Rule(
        "data.unlabelled",
        f"only {' and '.join(name for name, row in TASKS.items() if row.label_kind == 'class')} "
        "takes rows without labels",
        lambda s: s[DataSection].unlabelled is not None and s.task_row.label_kind != "class",
    ),
    Rule(
        "data.unlabelled",
        "with distillation.alpha 0 nothing would teach these rows",
        _teaching(lambda s, d: s[DataSection].unlabelled is not None and d.alpha == 0),
    ),
    Rule(
        "data.unlabelled",
        "a stream holds rows with labels alone",
        lambda s: s[DataSection].unlabelled is not None and s[DataSection].streaming,
    ),
    *(
        Rule(
            f"data.{key}",
            "it chooses among rows with labels, and data.unlabelled has none",
            partial(_unlabelled, key=key),
        )
        for key in ("sampling", "curriculum")
    ),
    Rule(
        "regularization.adversarial",
        "a teacher has no answer for texts that were moved: take one of the two",
        lambda s: (
            s[RegularizationSection].adversarial is not None
            and s.get(DistillationSection) is not None
        ),
    ),
)
