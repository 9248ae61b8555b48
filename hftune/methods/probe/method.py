# SPDX-License-Identifier: Apache-2.0
"""Probing: the frozen trunk turns each text into a vector once, and scikit-learn learns from those.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016,
arXiv:1610.01644. No gradient flows and no Trainer runs: what is here says what shall be fitted.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from hftune.core.errors import HftuneError
from hftune.methods.method import Method
from hftune.methods.probe.card_lines import probe_code
from hftune.methods.probe.row import PROBE
from hftune.models.pooling import Pooling
from hftune.models.save import ModelMetadata
from hftune.tasks.context import RunContext
from hftune.tasks.problem_types import make_problem_type

Classifier = Literal["logistic_regression", "ridge", "mlp", "gradient_boosting"]
Selection = Literal["variance_threshold", "select_k_best", "rfe"]
Balance = Literal["class_weight", "smote", "none"]


@dataclass(kw_only=True)
class ProbeConfig:
    """Options of a recipe. The ``_kwargs`` are scikit-learn's own arguments.

    Args:
        classifier: What is fitted; logistic regression for labels and ridge for numbers if absent.
        classifier_kwargs: Arguments of that class.
        pooling: What becomes of a row's tokens; as the model was made if absent.
        layer: Index of ``hidden_states``: 0 the embeddings, -1 the last layer.
        scaling: Each feature to mean 0 and variance 1, each row to length 1, or neither.
        feature_selection: Which features are kept; all of them if absent.
        feature_selection_kwargs: Arguments of that class.
        balance: How rare labels come to count; by weights where the classifier knows any if absent.
        balance_kwargs: Arguments of SMOTE.
        param_grid: Arguments of the classifier that cross-validation chooses, with their values.
        cv: Folds of the training rows; rows of one group or with one text stay together.
        scoring: What it chooses by: a name of scikit-learn's.
    """

    classifier: Classifier | None = field(default=None, metadata={"help": "What is fitted; "
        "logistic_regression for labels and ridge for numbers if absent."})  # fmt: skip
    classifier_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"help": "Arguments "
        "of scikit-learn's class, such as {max_iter: 500}."})  # fmt: skip
    pooling: Pooling | None = field(default=None, metadata={"help": "What becomes of a row's "
        "tokens: the first, their mean, the last; as the model was made if absent."})  # fmt: skip
    layer: int = field(default=-1, metadata={"help": "Index of hidden_states: 0 the embeddings, -1 "
        "the last layer."})  # fmt: skip
    scaling: Literal["standard", "l2", "none"] = field(default="standard", metadata={"help":
        "Each feature to mean 0 and variance 1, each row to length 1, or neither."})  # fmt: skip
    feature_selection: Selection | None = field(default=None, metadata={"help": "Which features "
        "are kept, by scikit-learn's class of that name; all if absent."})  # fmt: skip
    feature_selection_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"help":
        "Its arguments, such as {k: 128} or {n_features_to_select: 64}."})  # fmt: skip
    balance: Balance | None = field(default=None, metadata={"help": "How rare labels come to "
        "count: class_weight, smote in the training part of each fold, or none."})  # fmt: skip
    balance_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"help": "Arguments of "
        "imblearn.over_sampling.SMOTE, such as {k_neighbors: 3}."})  # fmt: skip
    param_grid: dict[str, list[Any]] | None = field(default=None, metadata={"help": "What "
        "cross-validation chooses, such as {C: [0.1, 1]}; {} for nothing."})  # fmt: skip
    cv: int = field(default=5, metadata={"help": "Folds of the training rows; a group or an equal "
        "text is never in two."})  # fmt: skip
    scoring: str | None = field(default=None, metadata={"help": "What cross-validation chooses "
        "by, as scikit-learn names it; f1_macro or neg_mean_squared_error if absent."})  # fmt: skip


class Probe(Method):
    """Fits a classifier on pooled hidden states.

    Args:
        options: Fields of :class:`ProbeConfig`.

    Example:
        >>> Probe(pooling="cls", layer=0).config.pooling
        'cls'
    """

    def __init__(self, **options: Any) -> None:
        self.config = ProbeConfig(**options)

    def check(self, skeleton: PreTrainedModel, context: RunContext) -> nn.Module | None:
        """Refuse a layer that the trunk does not have; see :class:`Method`."""
        layers = skeleton.config.get_text_config().num_hidden_layers
        if not -layers - 1 <= self.config.layer <= layers:
            raise HftuneError(
                f"method.layer: {self.config.layer}: hidden_states go from 0, the embeddings, to "
                f"{layers}, the last layer"
            )
        return self.apply(skeleton, context)

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Freeze everything.

        Raises:
            HftuneError: The model does not read texts.
        """
        if context.task_row.modality != "text":
            raise HftuneError(
                f"method probe {PROBE.no_images}, and {context.task} has no texts",
                hint="take head_only",
            )
        return model.requires_grad_(False)

    @classmethod
    def load_saved(cls, folder: Path, metadata: ModelMetadata, auto_model: Any) -> Any:
        """Return the fitted classifier on its trunk; see :class:`Method`."""
        from hftune.methods.probe.saved_probe import load_probe

        return load_probe(folder, metadata)

    @classmethod
    def loading_code(cls, metadata: ModelMetadata, place: str) -> list[str] | None:
        """Return lines that make ``features``, ``probe`` and ``answers``, too; see ``Method``."""
        return probe_code(metadata, place)

    @classmethod
    def logits_code(cls, metadata: ModelMetadata) -> str:
        """Return an expression that turns the classifier's numbers into logits; see ``Method``."""
        kind = make_problem_type(metadata.task_options["problem_type"])
        return kind.probe_logits.replace("NUM_LABELS", str(len(metadata.label_names)))

    def settle(self, pooling: Pooling, classifier: Classifier, balance: Balance) -> dict[str, Any]:
        """Fill in the options that the recipe leaves open.

        Returns:
            All options that say something, to be written down.
        """
        self.config.pooling = pooling
        self.config.classifier = classifier
        self.config.balance = balance
        said = {one.name: getattr(self.config, one.name) for one in fields(self.config)}
        return {key: value for key, value in said.items() if value is not None and value != {}}


def default_pooling(config: PreTrainedConfig, said: Pooling | None) -> Pooling:
    """Return the pooling that suits a model.

    Args:
        config: The model's.
        said: What the checkpoint says of itself, as those of sentence-transformers do.

    Returns:
        What it says; for a decoder the last token, the only one that has seen all others; else the
        mean, which without training tells texts apart better than the first token.

    Example:
        >>> from transformers import BertConfig, GPT2Config
        >>> default_pooling(BertConfig(), None), default_pooling(GPT2Config(), None)
        ('mean', 'last')
    """
    if said is not None:
        return said
    kind = type(config)
    decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    return "last" if decoder and not config.is_encoder_decoder else "mean"
