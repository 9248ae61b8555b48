# SPDX-License-Identifier: Apache-2.0
"""From rows to a fitted probe: features, folds, classifier, figures. No Trainer runs."""

import time
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.model_selection import ParameterGrid, StratifiedGroupKFold
from torch import Tensor

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.core.processes import peak_memory
from hftune.methods.probe.estimator import Estimator
from hftune.methods.probe.features import cached_features, embed, features_key, weights_fingerprint
from hftune.methods.probe.method import Probe, default_pooling
from hftune.methods.probe.saved_probe import FeatureConfig, FittedClassifier, load_trunk
from hftune.methods.runner import FitRows, Fitted, Fitting
from hftune.models.fingerprint import fingerprint
from hftune.models.load import checkpoint_pooling
from hftune.models.pooling import Pooling
from hftune.tasks.context import RunContext
from hftune.tasks.task import Task
from hftune.tasks.text_classification import TextClassification

FEWER_FOLDS = "a smaller method.cv, or method.param_grid: {} to choose nothing"
#: Fields of a config that say nothing about the trunk's weights.
NOT_THE_TRUNK = {"id2label", "label2id", "problem_type", "_name_or_path"}
Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True)
class ProbeFitting(Fitting):
    """A checked fit that lacks only its features.

    Attributes:
        method: The probe.
        task: Knows the labels.
        rows: The rows to fit on.
        context: The run.
        estimator: Scaling, selection and classifier.
        labels: Encoded labels of the training rows.
        folds: Indices of what is fitted and what is judged; none where nothing is chosen.
        pooling: How a row's tokens become one vector.
        options: Of the method, with what the recipe left open.
    """

    method: Probe
    task: TextClassification
    rows: FitRows
    context: RunContext
    estimator: Estimator
    labels: NDArray[np.generic]
    folds: Folds
    pooling: Pooling
    options: Mapping[str, object]

    def fit(self) -> Fitted:
        """Embed the rows that the cache lacks, choose, fit, and measure; see :class:`Fitting`."""
        estimator, start = self.estimator, time.perf_counter()
        embedder = Embedder(self)
        X = embedder(self.rows.train)
        held_out = None if self.rows.validation is None else embedder(self.rows.validation)
        embedded = time.perf_counter()
        if self.folds:
            candidates = len(ParameterGrid(estimator.grid))
            say(f"cross-validation: {candidates} candidates, {len(self.folds)} folds")
        pipeline, tried, converged = estimator.fit(X, self.labels, self.folds)
        base_fingerprint = fingerprint(embedder.trunk().named_parameters())
        if not converged:
            warn(
                "the classifier stopped before it converged; raise "
                "method.classifier_kwargs.max_iter"
            )
        head = FittedClassifier(
            pipeline=pipeline,
            reading=embedder.reading,
            problem_type=str(self.task.problem_type),
            num_labels=self.context.num_classes,
        )
        figures = {
            "train_runtime": time.perf_counter() - start,
            "embed_runtime": embedded - start,
            "fit_runtime": time.perf_counter() - embedded,
            "train_samples": len(X),
            "embedded_samples": embedder.embedded,
            "features": X.shape[1],
            **peak_memory(),
            **_chosen(tried, estimator),
            **({} if held_out is None else self._measured(head.logits(held_out))),
        }
        return Fitted(model=head, base_fingerprint=base_fingerprint, tried=tried, figures=figures)

    def _measured(self, logits: Tensor) -> dict[str, object]:
        """Return the task's metrics on the validation rows, and those of each class."""
        assert self.rows.validation is not None
        task = self.task
        labels = torch.as_tensor(np.asarray(self.rows.validation["labels"][:]))
        kept = {name: value.numpy() for name, value in task.eval_outputs(logits, labels).items()}
        task.calibrate(kept)
        metrics = {f"eval_{name}": value for name, value in task.all_metrics(kept).items()}
        per_class = task.per_class(kept)
        return {**metrics, **({"eval_per_class": per_class} if per_class else {})}


def prepare_fit(
    method: Probe, task: TextClassification, rows: FitRows, context: RunContext
) -> ProbeFitting:
    """Check all that can be known before the trunk is loaded.

    Args:
        method: The probe.
        task: Knows the labels.
        rows: The rows to fit on.
        context: The run.

    Raises:
        HftuneError: An option does not fit scikit-learn, the labels, or the number of rows.
    """
    assert task.problem_type is not None
    assert context.config is not None
    estimator = Estimator(
        method.config,
        problem_type=task.problem_type,
        num_classes=context.num_classes,
        seed=context.seed,
    )
    pooling = method.config.pooling or default_pooling(
        context.config, checkpoint_pooling(context.path, context.revision)
    )
    labels = np.asarray(task.kind.encode(rows.examples["label"][:], task.label_names))
    fitting = ProbeFitting(
        method=method,
        task=task,
        rows=rows,
        context=context,
        estimator=estimator,
        labels=labels,
        folds=_folds(task, rows.examples, method.config.cv, context.seed) if estimator.grid else [],
        pooling=pooling,
        options=method.settle(pooling, estimator.classifier, estimator.balance),
    )
    _check_folds(fitting)
    return fitting


def _folds(task: Task, examples: Dataset, number: int, seed: int) -> Folds:
    """Split the training rows as a validation part is split: no text or group is in two folds."""
    keys, strata = task.split_keys(examples)
    groups, alike = _numbers(keys), _numbers(strata)
    if (have := len(np.unique(groups))) < number:
        raise HftuneError(
            f"method.cv: {number} folds need as many groups of rows, and there are {have}",
            hint=FEWER_FOLDS,
        )
    if np.bincount(alike).max() < number:
        alike = np.zeros_like(alike)  # too few of each to hold them alike
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a label with fewer rows than folds
        return list(splitter.split(groups, alike, groups))


def _numbers(keys: Any) -> NDArray[np.int64]:
    """Return a number for each key, equal for equal keys."""
    known: dict[Hashable, int] = {}
    return np.asarray([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _check_folds(fitting: ProbeFitting) -> None:
    """Raise if a fold is empty, holds one label only, or too few rows of one for SMOTE."""
    task, labels = fitting.task, fitting.labels
    neighbours = fitting.estimator.neighbours()
    for fitted, judged in fitting.folds:
        alone = task.one_class and len(np.unique(labels[fitted])) < 2
        if alone or not len(judged):
            raise HftuneError(
                f"method.cv: of {len(fitting.folds)} folds one has too few rows, or one label only",
                hint=FEWER_FOLDS,
            )
    for part in [fitted for fitted, _ in fitting.folds] + [np.arange(len(labels))]:
        if not neighbours:
            return
        counts = np.bincount(labels[part], minlength=len(task.label_names))
        for label, count in enumerate(counts.tolist()):
            if 0 < count <= min(neighbours, counts.max() - 1):
                where = "" if len(part) == len(labels) else ", in the training part of a fold"
                raise HftuneError(
                    f"method.balance: smote needs {neighbours + 1} rows of each label, and "
                    f"{task.label_names[label]!r} has {count}{where}",
                    hint=f"balance_kwargs: {{k_neighbors: {max(count - 1, 1)}}}, a smaller "
                    "method.cv, or balance: class_weight",
                )


class Embedder:
    """Rows to features; the trunk is loaded when the cache lacks some.

    Args:
        fitting: What is fitted.

    Attributes:
        reading: What turns a text into its features.
        embedded: How many rows the trunk has read.
    """

    def __init__(self, fitting: ProbeFitting) -> None:
        context, self.embedded, self._trunk = fitting.context, 0, None
        assert context.config is not None
        self.context, self.config = context, context.config
        self.collate = fitting.task.collator(context.tokenizer)
        dtype: Any = context.dtype
        if dtype == "auto":
            dtype = self.config.dtype or torch.float32
        self.reading = FeatureConfig(
            base_model_name_or_path=context.path,
            revision=context.revision,
            config=dict(context.config_changes),
            dtype=str(dtype).removeprefix("torch."),
            encoder_only=self.config.is_encoder_decoder,
            pooling=fitting.pooling,
            layer=fitting.method.config.layer,
        )
        config = self.config.to_dict()
        commit = getattr(self.config, "_commit_hash", None)  # of the Hub; a folder has none
        self._decides = {
            "weights": weights_fingerprint(context.path, commit),
            "config": {name: config[name] for name in config.keys() - NOT_THE_TRUNK},
            "dtype": self.reading.dtype,
            "pooling": self.reading.pooling,
            "layer": self.reading.layer,
            "attn_implementation": context.attention,
            "device": context.device.type,
        }

    def __call__(self, rows: Dataset) -> NDArray[np.float32]:
        """Return the features of encoded rows, shape ``(rows, D)``."""
        return cached_features(features_key(rows, **self._decides), partial(self._embed, rows))

    def _embed(self, rows: Dataset) -> NDArray[np.float32]:
        self.embedded += len(rows)
        return embed(
            self.trunk(),
            rows,
            self.collate,
            pooling=self.reading.pooling,
            layer=self.reading.layer,
            batch_size=self.context.eval_batch_size,
        )

    def trunk(self) -> Any:
        """Return the frozen trunk."""
        if self._trunk is None:
            self._trunk = load_trunk(
                self.context.path,
                self.config,
                dtype=getattr(torch, self.reading.dtype),
                revision=self.context.revision,
                attn_implementation=self.context.attention,
            ).to(self.context.device)
        return self._trunk


def _chosen(tried: list[dict[str, object]], estimator: Estimator) -> dict[str, object]:
    """Return the best candidate and its score."""
    best = [one for one in tried if one["best"]]
    if not best:
        return {}
    params = {name: best[0][name] for name in estimator.grid}
    return {"best_params": params, f"cv_{estimator.scoring}": best[0]["cv_score"]}
