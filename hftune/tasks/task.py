# SPDX-License-Identifier: Apache-2.0
"""The contract of a task: columns, preprocessing, collator, evaluation and prediction."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from rich.text import Text
from torch import Tensor, nn
from transformers import DataCollator, PreTrainedConfig

from hftune.core.errors import HftuneError
from hftune.data.columns import Role, find_columns
from hftune.data.split import Keys
from hftune.evaluation.external import ExternalMetric, Metric, load_metrics
from hftune.losses.loss import ROW, forward
from hftune.losses.of_rows import row_losses
from hftune.models.load import load_processor
from hftune.tasks.explain_inputs import ExplainInputs, ExplainOptions
from hftune.tasks.forms import Form, form_of
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.processors import Processor

#: What evaluation keeps of a batch: tensors whose first axis is the row, padded with -100.
EvalOutputs = dict[str, Tensor]
#: The same of all rows, as arrays.
EvalArrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Sizes and limits of a prediction.

    Attributes:
        max_length: Tokens a row may have; None for no limit.
        batch_size: Rows a batch.
        max_new_tokens: Length of a generated text.
    """

    max_length: int | None = None
    batch_size: int = 32
    max_new_tokens: int = 64


class Task(ABC):
    """One of the Hub's tasks.

    Attributes:
        name: The Hub's name.
        noun: Phrase for its models in messages, such as ``a classifier``.
        auto_model: The ``transformers.AutoModelFor...`` class that loads its models.
        auto_processor: The ``transformers.Auto...`` class that loads their processors.
        processor_name: Transformers' word for such a processor, as in ``AutoTokenizer``.
        main_input_name: The input that its models need, as Transformers calls it.
        sample_texts: Texts on which two tokenizers are compared; empty for other processors.
        roles: The parts that columns play.
        counts_in: Unit of the numbers of labels.
        causal: Whether position ``t`` predicts label ``t + 1``.
        label_names: Class names by id; empty where the task has none.
        metric_names: What :meth:`metrics` returns and a best model can be chosen by.
        external_metrics: Metrics of other libraries, computed beside the task's own.
        best_metric: What the best model is chosen by if the recipe does not say.
        default_loss: The loss if the recipe does not say.
        problem_type: ``config.problem_type`` of a classifier.
        gives_predictions: Whether evaluation keeps predictions, so that
            :meth:`predictions_and_references` can be asked.
        streamed: Whether rows come a few at a time, so that nothing can be asked of all of them.
    """

    name: str
    noun: str
    auto_model: Any
    auto_processor: Any
    processor_name: str
    main_input_name: str
    sample_texts: tuple[str, ...] = ()
    roles: tuple[Role, ...]
    counts_in = "rows"
    causal = False
    metric_names: tuple[str, ...]
    best_metric = "loss"
    default_loss = "cross_entropy"
    problem_type: str | None = None
    gives_predictions = True
    streamed = False

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        self.label_names = list(label_names)
        self.external_metrics: list[ExternalMetric] = []

    @classmethod
    def forms(cls) -> tuple[Form, ...]:
        """Return the forms that its rows come in, the best first."""
        return (form_of(cls.roles),)

    def load_processor(self, path: str, revision: str | None = None) -> Processor:
        """Load the processor of a model.

        Raises:
            HftuneError: The model has none.
        """
        processor: Processor = load_processor(self.auto_processor, path, revision)
        return processor

    def processor_state(self, processor: Processor) -> dict[str, Any]:
        """Return everything about a processor that decides its outputs, for a key of the cache."""
        state: dict[str, Any] = cast(Any, processor).to_dict()
        return {"processor": state}

    def reads_alike(self, processor: Processor, other: Processor) -> bool:
        """Tell whether two processors make the same inputs, as far as they tell."""
        return self.processor_state(processor) == self.processor_state(other)

    def processor_limit(self, processor: Processor) -> int | None:
        """Return the largest number of tokens of a row that a processor allows; None for any."""
        return None

    @abstractmethod
    def show(
        self, row: Mapping[str, Any], example: Mapping[str, Any], processor: Processor
    ) -> Text:
        """Show a row as the model gets it, for ``hftune check``; labels are green.

        Args:
            row: The preprocessed row.
            example: The selected row.
            processor: The model's.
        """

    @abstractmethod
    def sample_inputs(self, processor: Processor) -> list[dict[str, Tensor]]:
        """Return inputs to compare two models on, one row each, without labels."""

    def explain_inputs(
        self, model: Any, processor: Processor, text: str, options: ExplainOptions
    ) -> ExplainInputs:
        """Read a text as the model does, for ``hftune explain``.

        Raises:
            HftuneError: The task cannot be explained, or an option leaves no room for the text.
        """
        raise HftuneError(f"explain is made for texts, not for {self.name}")

    def prediction_of(self, logits: Tensor, processor: Processor) -> dict[str, Any]:
        """Return ``kind`` and ``scores`` of the prediction for one row, the best first."""
        raise NotImplementedError(f"explain_inputs of {self.name} makes the prediction")

    def one_row_each(self, rows: Dataset) -> bool:
        """Tell whether each selected row becomes one row for the model."""
        return True

    def options(self) -> dict[str, Any]:
        """Return the arguments of the constructor that a saved model must remember."""
        return {"label_names": self.label_names}

    def columns(
        self, names: Sequence[str], given: Mapping[str, str], *, answers: bool = True
    ) -> dict[str, str]:
        """Return role -> column; see :func:`hftune.data.columns.find_columns`.

        Args:
            names: The columns there are.
            given: Those whose role is known.
            answers: Whether what a model predicts is wanted, too.
        """
        roles = [role for role in self.roles if answers or not role.answer]
        known = {role.name for role in roles} if not answers else given.keys()
        return find_columns(names, roles, {r: c for r, c in given.items() if r in known})

    @abstractmethod
    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return the rows with one column a role, checked; the message names bad rows."""

    @abstractmethod
    def fit_labels(self, train: Dataset, validation: Dataset | None) -> None:
        """Learn label names and similar facts from the selected rows."""

    @abstractmethod
    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if a split has unknown labels or lacks needed ones.

        Args:
            rows: Selected rows.
            part: The word for them in the message.
        """

    def occurring_labels(self, rows: Dataset) -> Set[str]:
        """Return the labels that stand in selected rows; empty where labels are no names."""
        return frozenset()

    @abstractmethod
    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Return split groups and strata: groups stay in one split, strata are spread over both."""

    @abstractmethod
    def preprocess(
        self, rows: Dataset, processor: Processor, max_length: int | None
    ) -> ProcessedDataset:
        """Turn selected rows into tokens and labels; rows without answers get no labels."""

    @abstractmethod
    def collator(self, processor: Processor, model: nn.Module | None = None) -> DataCollator:
        """Return the collator of preprocessed rows; some depend on ``model``."""

    @abstractmethod
    def configure(self, config: PreTrainedConfig, processor: Processor) -> dict[str, Any]:
        """Set the fields of the model's config that the task decides.

        Returns:
            The fields, but for the labels, that differ now from the base's own config.
        """

    @abstractmethod
    def class_counts(self, encoded: Dataset, num_classes: int) -> NDArray[np.integer[Any]]:
        """Return how often each class is a label, by id."""

    @abstractmethod
    def classes(self, processor: Processor, num_classes: int) -> list[str]:
        """Return the name of each class, by id."""

    def remarks(self, rows: Dataset) -> list[str]:
        """Return remarks for the user about the selected training rows."""
        return []

    def evaluation_step(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> EvalOutputs:
        """Run the model on a batch and return the outputs that the metrics need."""
        return self.eval_outputs(forward(model, inputs).logits, inputs["labels"])

    @abstractmethod
    def eval_outputs(self, logits: Tensor, labels: Tensor) -> EvalOutputs:
        """Return the few numbers a row that the metrics need, labels among them."""

    @abstractmethod
    def metrics(self, outputs: EvalArrays) -> dict[str, float]:
        """Return the metrics of all rows from their :meth:`eval_outputs`."""

    def add_metrics(self, metrics: Sequence[Metric]) -> None:
        """Have metrics of other libraries computed beside the task's own.

        Args:
            metrics: See :func:`hftune.evaluation.external.load_metrics`.

        Raises:
            HftuneError: One cannot be had, or evaluation keeps nothing that they could judge.
        """
        if metrics and not self.gives_predictions:
            raise HftuneError(
                f"evaluation.metrics: they judge predictions, and evaluation of {self.name} "
                "writes none",
                hint="set evaluation.generation: {max_new_tokens: 64}",
            )
        self.external_metrics = load_metrics(metrics, self.metric_names)

    def all_metrics(self, outputs: EvalArrays) -> dict[str, float]:
        """Return :meth:`metrics` and those of other libraries that were asked for."""
        metrics = self.metrics(outputs)
        for external in self.external_metrics:
            metrics |= external.compute(*self.predictions_and_references(outputs))
        return metrics

    def per_class(self, outputs: EvalArrays) -> dict[str, dict[str, float]]:
        """Return label name -> metrics; empty where the task has no labels."""
        return {}

    @abstractmethod
    def predictions_and_references(self, outputs: EvalArrays) -> tuple[list[Any], list[Any]]:
        """Return predictions and references of all rows, as metrics of other libraries take them.

        Only asked of a task that :attr:`gives_predictions`.
        """

    def samples(self, outputs: EvalArrays, number: int) -> list[dict[str, str]]:
        """Return the first rows with the generated texts; none if the task generates no text."""
        return []

    @property
    def one_class(self) -> bool:
        """Whether each row has exactly one class."""
        return False

    @property
    def labels_compete(self) -> bool:
        """Whether labels have names and exclude each other."""
        return bool(self.label_names)

    @property
    def unnamed_outputs(self) -> int | None:
        """Outputs of the head that no labels name; None if labels or tokens name them."""
        return None

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the plain loss of each row of a batch, shape ``(B,)``."""
        return row_losses(logits, labels, causal=self.causal)

    def learn_prior(self, shares: Sequence[float] | None) -> None:
        """Take the class shares that the model's probabilities will assume; None if unknown."""
        return None

    def calibrate(self, outputs: EvalArrays) -> None:
        """Learn thresholds and similar facts from the validation rows after training."""
        return None

    def prepare_predictions(
        self,
        model: Any,
        processor: Processor,
        rows: Dataset,
        how: PredictArguments,
    ) -> None:
        """Learn facts about all rows to predict that each prediction needs; see :meth:`predict`."""
        return None

    @abstractmethod
    def predict(
        self,
        model: Any,
        processor: Processor,
        rows: Dataset,
        how: PredictArguments,
    ) -> list[dict[str, Any]]:
        """Return ``prediction``, and scores or the like, for each of the selected rows.

        Args:
            model: In evaluation mode.
            processor: The model's.
            rows: Selected rows; answers are not needed.
            how: Sizes and limits.
        """


def blank_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that counts nothing: its labels are all -100, or NaN among numbers.

    It fills up the last batches of several processes, so that each has as many.
    """
    labels = row["labels"]
    blank = [_blank(label) for label in labels] if isinstance(labels, list) else _blank(labels)
    return {**row, "labels": blank, **({ROW: -1} if ROW in row else {})}


def _blank(label: float) -> float:
    return math.nan if isinstance(label, float) else -100
