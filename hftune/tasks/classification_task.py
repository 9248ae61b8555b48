# SPDX-License-Identifier: Apache-2.0
"""The part of a task that gives each row a label, labels or a number, whatever the rows are of."""

from collections.abc import Sequence, Set
from typing import Any, cast

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    PreTrainedConfig,
)

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.core.registry import SINGLE_LABEL
from hftune.evaluation.decisions import estimated_prior, prior_shift
from hftune.tasks.class_prior import Prior, as_shares, shares_by_name
from hftune.tasks.explain_inputs import best_labels
from hftune.tasks.inference import scores
from hftune.tasks.label_checks import first_with, shown
from hftune.tasks.problem_types import make_problem_type, problem_type_of
from hftune.tasks.problem_types.problem_type import LabelSet, ProblemType, Thresholds
from hftune.tasks.processors import Processor
from hftune.tasks.task import EvalArrays, EvalOutputs, PredictArguments, Task

#: Validation rows of a label from which on its threshold is more than chance, roughly.
FEW = 20
#: Rows from which class shares are estimated at most, where rows are predicted.
JUDGED = 10_000


class Classification(Task):
    """Labels of one kind; see :mod:`hftune.tasks.problem_types`.

    Args:
        label_names: Class names by id; taken from the training rows if empty.
        problem_type: ``config.problem_type``; guessed from the labels if None.
        label_separator: What stands between several labels of one cell.
        thresholds: Probability from which on a label is given, or what the probabilities of classes
            that compete are divided by: one, label name -> threshold, or ``best_f1`` for those that
            suit the validation rows.
        prior: Class shares where the model is used: ``uniform``, in label order, by name, or
            ``estimated`` from the rows that are judged, without their labels.
        seen_prior: Class shares that the model's probabilities assume, by name.
    """

    noun = "a classifier"

    def __init__(
        self,
        label_names: Sequence[str] = (),
        *,
        problem_type: str | None = None,
        label_separator: str | None = None,
        thresholds: Thresholds = None,
        prior: Prior | None = None,
        seen_prior: dict[str, float] | None = None,
    ) -> None:
        super().__init__(label_names)
        self.problem_type = problem_type
        self.label_separator = label_separator
        self.thresholds = thresholds
        self.prior = prior
        self.seen_prior = seen_prior
        self._declared: list[str] = []

    def options(self) -> dict[str, Any]:
        """Return what a saved model must remember; see :class:`Task`."""
        return {
            "label_names": self.label_names,
            "problem_type": self.problem_type,
            "label_separator": self.label_separator,
            "thresholds": self.thresholds,
            "prior": self.prior,
            "seen_prior": self.seen_prior,
        }

    @property
    def kind(self) -> ProblemType:
        """How the labels are read and measured."""
        return make_problem_type(self.problem_type or SINGLE_LABEL, self.label_separator)

    @property
    def one_class(self) -> bool:
        """Whether each row has exactly one class; see :class:`Task`."""
        return self.kind.row.one_class

    @property
    def labels_compete(self) -> bool:
        """Whether there are labels, of which a row has one; see :class:`Task`."""
        return bool(self.label_names) and self.one_class

    @property
    def unnamed_outputs(self) -> int | None:
        """One for numbers; see :class:`Task`."""
        return 1 if self.kind.row.numbers else None

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of the problem type; see :class:`Task`."""
        return self.kind.row_losses(logits, labels)

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """What :meth:`metrics` returns."""
        return self.kind.metric_names

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        """What the best model is chosen by if the recipe does not say."""
        return self.kind.best_metric

    @property
    def default_loss(self) -> str:  # type: ignore[override]
        """The loss if the recipe does not say."""
        return self.kind.loss

    def _labels(self, rows: Dataset, column: str) -> Any:
        self._resolve_problem_type(rows, column)
        feature = rows.features[column]
        if isinstance(feature, ClassLabel):
            self._declared = self._declared or list(feature.names)
        return self.kind.read(rows, column)

    def _resolve_problem_type(self, rows: Dataset, column: str) -> None:
        if self.problem_type is None:
            named = bool(self.label_names)
            self.problem_type = problem_type_of(rows, column, self.label_separator, named=named)
            if not self.one_class:
                say(f"problem type: {self.problem_type} (say otherwise: model.config.problem_type)")

    def fit_labels(self, train: Dataset, validation: Dataset | None) -> None:
        """Collect the label names, unless they are known already.

        Raises:
            HftuneError: There is too little to tell apart, or the validation part has labels of
                its own.
        """
        if self.label_names:
            if unknown := self.kind.occurring(train) - set(self.label_names):
                row, label = first_with(unknown, train)
                raise HftuneError(
                    f"data.label_names lacks {label!r}, the label of training row {row}",
                    hint=f"labels of the rows: {shown(sorted(self.kind.occurring(train)))}",
                )
        elif not self.streamed:
            names = self.kind.names(train)
            self.label_names = self._declared if set(names) <= set(self._declared) else names
        self.kind.thresholds(self.thresholds, self.label_names)
        if self.prior is not None:
            if not self.one_class:
                raise HftuneError("evaluation.prior: it goes with one label a text")
            as_shares(self.prior, self.label_names)
        if validation is not None:
            self.check(validation, "validation")

    def occurring_labels(self, rows: Dataset) -> Set[str]:
        """Return the label names that occur in rows; see :class:`Task`."""
        return self.kind.occurring(rows)

    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if a part has labels that training does not know."""
        unknown = self.kind.occurring(rows) - set(self.label_names)
        if unknown:
            raise HftuneError(
                f"the {part} rows have labels that training does not know: "
                f"{shown(sorted(unknown))}; row {first_with(unknown, rows)[0]} has the first",
                hint=f"known labels: {shown(self.label_names)}; data.label_names says all of them, "
                "where rows were left out",
            )

    def class_counts(self, encoded: Dataset, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count the rows of each label; see :class:`Task`."""
        return self.kind.counts(encoded["labels"][:], len(self.label_names))

    def classes(self, processor: Processor, num_classes: int) -> list[str]:
        """Return the label names; see :class:`Task`."""
        return self.label_names

    def prediction_of(self, logits: Tensor, processor: Processor) -> dict[str, Any]:
        """Return the number, or the labels with their probabilities; see :class:`Task`."""
        shares = self.kind.to_probabilities(logits[0].float().cpu())
        if shares is None:
            score = {"name": f"{logits[0, 0]:.4g}", "probability": None}
            return {"kind": "number", "scores": [score]}
        return {"kind": "label", "scores": best_labels(shares, self.label_names)}

    def remarks(self, rows: Dataset) -> list[str]:
        """Return what the labels' kind remarks; see :class:`Task`."""
        return self.kind.remarks(rows)

    def eval_outputs(self, logits: Tensor, labels: Tensor) -> EvalOutputs:
        """Keep the logits of each row and its labels."""
        return {"scores": logits.float(), "labels": labels}

    def metrics(self, outputs: EvalArrays) -> dict[str, float]:
        """Return what the problem type measures."""
        scores = outputs["scores"]
        return self.kind.metrics(scores, outputs["labels"], self._known(scores))

    def per_class(self, outputs: EvalArrays) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1 and support of each label, and its share if estimated."""
        scores = outputs["scores"]
        rows = self.kind.per_class(scores, outputs["labels"], self._known(scores))
        if self._estimates:
            for name, share in zip(self.label_names, self._shares(scores), strict=True):
                rows[name]["prior"] = float(share)
        return rows

    def predictions_and_references(self, outputs: EvalArrays) -> tuple[list[Any], list[Any]]:
        """Return ids, rows of 0 and 1, or numbers; see :class:`Task`."""
        scores = outputs["scores"]
        predicted = self.kind.predicted(scores, self._known(scores))
        return predicted.tolist(), outputs["labels"].tolist()

    def calibrate(self, outputs: EvalArrays) -> None:
        """Find the thresholds that ``best_f1`` asks for."""
        if self.thresholds == "best_f1":
            scores = self._known(outputs["scores"]).corrected(outputs["scores"])
            best = self.kind.best_thresholds(scores, outputs["labels"])
            self.thresholds = dict(zip(self.label_names, best.tolist(), strict=True))
            counts = self.kind.counts(outputs["labels"], len(self.label_names))
            if few := [n for n, count in zip(self.label_names, counts, strict=True) if count < FEW]:
                warn(
                    f"fewer than {FEW} validation rows chose the thresholds of {shown(few)}: "
                    "mostly chance; compare with the highest probability on other rows"
                )

    def learn_prior(self, shares: Sequence[float] | None) -> None:
        """Remember what a prior corrects; see :class:`Task`."""
        if self.prior is not None:
            self.seen_prior = shares_by_name(shares, self.label_names)

    def prepare_predictions(
        self,
        model: Any,
        processor: Processor,
        rows: Dataset,
        how: PredictArguments,
    ) -> None:
        """Estimate the class shares, from some of the rows where there are many."""
        if not self._estimates:
            return
        if len(rows) > JUDGED:
            drawn = np.random.default_rng(0).permutation(len(rows))[:JUDGED]
            rows = rows.select(np.sort(drawn))
        encoded = self.preprocess(rows, processor, how.max_length)
        collate = self.collator(processor)
        found = [logits for _, logits in scores(model, encoded, collate, how.batch_size)]
        shares = self._shares(torch.stack(found).numpy())
        self.prior = dict(zip(self.label_names, shares.tolist(), strict=True))
        said = ", ".join(f"{name} {share:.1%}" for name, share in self.prior.items())
        say(f"class shares estimated from {len(rows)} rows: {said}")
        if len(rows) < FEW * len(self.label_names):
            warn(f"{len(rows)} rows are few to estimate {len(self.label_names)} shares from")

    @property
    def _estimates(self) -> bool:
        """Whether the shares are those of the rows at hand."""
        return self.prior == "estimated" and self.seen_prior is not None

    def _known(self, scores: NDArray[Any] | None = None) -> LabelSet:
        """How rows are decided; by the logits of all of them where these tell the shares."""
        names = self.label_names
        thresholds = self.kind.thresholds(self.thresholds, names)
        if self.prior is None or self.seen_prior is None:
            return LabelSet(names, thresholds)
        seen = as_shares(self.seen_prior, names)
        return LabelSet(names, thresholds, prior_shift(self._shares(scores), seen))

    def _shares(self, scores: NDArray[Any] | None) -> NDArray[Any]:
        """The class shares where the model is used, shape ``(classes,)``."""
        given, seen = cast(Prior, self.prior), cast(Prior, self.seen_prior)
        if self._estimates and scores is not None:
            return estimated_prior(scores, as_shares(seen, self.label_names))
        return as_shares(given, self.label_names)

    def predict(
        self,
        model: Any,
        processor: Processor,
        rows: Dataset,
        how: PredictArguments,
    ) -> list[dict[str, Any]]:
        """Return ``prediction`` and ``scores``; see :class:`Task`."""
        encoded = self.preprocess(rows, processor, how.max_length)
        if encoded.num_truncated:
            warn(f"cut at {how.max_length} tokens: {encoded.num_truncated} of {len(rows)} rows")
        answers: list[dict[str, Any]] = [{}] * len(rows)
        self.prepare_predictions(model, processor, rows, how)
        known = self._known()
        for index, logits in scores(model, encoded, self.collator(processor), how.batch_size):
            answers[index] = self.kind.answer(logits, known)
        return answers

    def set_labels(self, config: PreTrainedConfig) -> None:
        """Write the problem type and the labels into the model's config."""
        config.problem_type = self.problem_type  # type: ignore[assignment]
        if self.label_names:
            config.id2label = dict(enumerate(self.label_names))
            config.label2id = {name: index for index, name in enumerate(self.label_names)}
        else:
            config.num_labels = 1
