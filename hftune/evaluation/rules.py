# SPDX-License-Identifier: Apache-2.0
"""Rules of evaluation, decision thresholds, generated texts and the choice of the best model."""

from hftune.core.rules import RecipeView, Rule, installed, training
from hftune.data.section import DataSection
from hftune.evaluation.section import EvaluationSection


def _generates(view: RecipeView) -> bool:
    given = view[EvaluationSection].generation
    return view.task_row.generates if given is None else given is not False


EVALUATION_RULES = (
    Rule(
        "evaluation.thresholds",
        "best_f1 looks for them in validation rows: set data.validation or data.validation_size",
        lambda s: (
            s[EvaluationSection].thresholds == "best_f1" and not s[DataSection].has_validation
        ),
    ),
    Rule(
        "evaluation.prior",
        "best_f1 finds what suits the validation rows, whatever the prior: take one of the two",
        lambda s: (
            s[EvaluationSection].thresholds == "best_f1" and s[EvaluationSection].prior is not None
        ),
    ),
    Rule(
        "evaluation.prior",
        "it corrects the shares of the training rows, which a stream cannot count",
        lambda s: s[DataSection].streaming and s[EvaluationSection].prior is not None,
    ),
    Rule(
        "evaluation.generation",
        "judging texts needs sacrebleu and rouge-score: pip install 'hftune[generation]', or set "
        "it to false",
        lambda s: (
            _generates(s)
            and s[DataSection].has_validation
            and not installed("sacrebleu", "rouge_score")
        ),
    ),
    Rule(
        "evaluation.generation",
        "there is no validation part to write texts for: set data.validation or "
        "data.validation_size",
        lambda s: bool(s[EvaluationSection].generation) and not s[DataSection].has_validation,
    ),
    Rule(
        "evaluation.gap",
        "there is no validation part to compare with: set data.validation or data.validation_size",
        lambda s: s[EvaluationSection].gap and not s[DataSection].has_validation,
    ),
    Rule(
        "training.eval_strategy",
        "there is nothing to evaluate on: set data.validation or data.validation_size",
        lambda s: (
            training(s, "eval_strategy", "no") not in ("no", False)
            and not s[DataSection].has_validation
        ),
    ),
    Rule(
        "training.eval_steps",
        "it has an effect only with eval_strategy: steps",
        lambda s: "eval_steps" in s.training and training(s, "eval_strategy") != "steps",
    ),
    Rule(
        "training.load_best_model_at_end",
        "the best model can only be known with evaluation: set eval_strategy",
        lambda s: (
            bool(training(s, "load_best_model_at_end"))
            and (training(s, "eval_strategy") in ("no", False) or not s[DataSection].has_validation)
        ),
    ),
    Rule(
        "training.load_best_model_at_end",
        "the best model must have been saved: save_strategy must be best or equal eval_strategy",
        lambda s: (
            bool(training(s, "load_best_model_at_end"))
            and "save_strategy" in s.training
            and training(s, "save_strategy") not in ("best", training(s, "eval_strategy", "epoch"))
        ),
    ),
    Rule(
        "training.save_strategy",
        "best needs evaluation: set eval_strategy",
        lambda s: (
            training(s, "save_strategy") == "best"
            and (training(s, "eval_strategy") in ("no", False) or not s[DataSection].has_validation)
        ),
    ),
)
