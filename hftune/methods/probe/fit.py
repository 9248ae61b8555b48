# SPDX-License-Identifier: Apache-2.0
"""From a plan to a fitted probe: features, folds, classifier, figures. No Trainer runs."""

import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.model_selection import ParameterGrid, StratifiedGroupKFold
from torch import Tensor

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.core.registry import Choice
from hftune.methods.probe.estimator import Estimator
from hftune.methods.probe.features import cached_features, embed, features_key, weights_fingerprint
from hftune.methods.probe.method import Probe, default_pooling
from hftune.methods.probe.saved_probe import Head, Reading, load_trunk
from hftune.models.fingerprint import fingerprint
from hftune.models.load import checkpoint_pooling
from hftune.models.pooling import Pooling
from hftune.tasks.text_classification import TextClassification
from hftune.training.build import weight_dtype
from hftune.training.callbacks.throughput import peak_memory
from hftune.training.plan.plan import Plan

FEWER_FOLDS = "a smaller method.cv, or method.param_grid: {} to choose nothing"
#: Fields of a config that say nothing about the trunk's weights.
NOT_THE_TRUNK = {"id2label", "label2id", "problem_type", "_name_or_path"}
Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A checked fit that only lacks its features.

    Attributes:
        plan: What is fitted.
        estimator: Scaling, selection and classifier.
        labels: Encoded, of the training rows.
        folds: Indices of what is fitted and what is judged; none where nothing is chosen.
        pooling: What becomes of a row's tokens.
        method: The method with what the recipe left open.
    """

    plan: Plan
    estimator: Estimator
    labels: NDArray[Any]
    folds: Folds
    pooling: Pooling
    method: Choice


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What fitting gives.

    Attributes:
        head: The classifier, and what it reads.
        tried: Each candidate of the cross-validation with its score.
        figures: ``metrics.json``.
    """

    head: Head
    tried: list[dict[str, Any]]
    figures: dict[str, Any]


def prepare_fit(plan: Plan) -> Fitting:
    """Check all that can be known before the trunk is loaded.

    Raises:
        HftuneError: An option does not fit scikit-learn, the labels, or the number of rows.
    """
    task, method = cast(TextClassification, plan.task), cast(Probe, plan.method)
    assert task.problem_type is not None
    estimator = Estimator(
        method.config,
        problem_type=task.problem_type,
        num_classes=plan.num_classes(),
        seed=plan.arguments.seed,
    )
    pooling = method.config.pooling or default_pooling(
        plan.config, checkpoint_pooling(plan.location, plan.recipe.model.revision)
    )
    labels = np.asarray(task.kind.encode(plan.parts.train["label"][:], task.label_names))
    settled = method.settle(pooling, estimator.classifier, estimator.balance)
    fitting = Fitting(
        plan=plan,
        estimator=estimator,
        labels=labels,
        folds=_folds(plan, method.config.cv) if estimator.grid else [],
        pooling=pooling,
        method=Choice(name=plan.recipe.method.name, options=settled),
    )
    _check_folds(fitting)
    return fitting


def _folds(plan: Plan, number: int) -> Folds:
    """Split the training rows as a validation part is split: no text or group is in two folds."""
    keys, strata = plan.task.split_keys(plan.parts.train)
    groups, alike = _numbers(keys), _numbers(strata)
    if (have := len(np.unique(groups))) < number:
        raise HftuneError(
            f"method.cv: {number} folds need as many groups of rows, and there are {have}",
            hint=FEWER_FOLDS,
        )
    if np.bincount(alike).max() < number:
        alike = np.zeros_like(alike)  # too few of each to hold them alike
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=plan.arguments.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a label with fewer rows than folds
        return list(splitter.split(groups, alike, groups))


def _numbers(keys: Any) -> NDArray[np.int64]:
    """Keys of any kind as numbers."""
    known: dict[Any, int] = {}
    return np.asarray([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _check_folds(fitting: Fitting) -> None:
    """Raise if a fold is empty, holds one label only, or too few rows of one for SMOTE."""
    task, labels = fitting.plan.task, fitting.labels
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


def fit_probe(fitting: Fitting) -> Fitted:
    """Embed what the cache lacks, choose, fit, and measure.

    Raises:
        HftuneError: The trunk cannot be loaded.
        RunError: scikit-learn refuses the rows.
    """
    plan, estimator, start = fitting.plan, fitting.estimator, time.perf_counter()
    embedder = Embedder(fitting)
    X = embedder(plan.train.dataset)
    held_out = None if plan.validation is None else embedder(plan.validation.dataset)
    embedded = time.perf_counter()
    if fitting.folds:
        candidates = len(ParameterGrid(estimator.grid))
        say(f"cross-validation: {candidates} candidates, {len(fitting.folds)} folds")
    pipeline, tried, converged = estimator.fit(X, fitting.labels, fitting.folds)
    plan.base_fingerprint = fingerprint(embedder.trunk().named_parameters())
    if not converged:
        warn("the classifier stopped before it converged; raise method.classifier_kwargs.max_iter")
    head = Head(
        pipeline=pipeline,
        reading=embedder.reading,
        problem_type=str(plan.task.problem_type),
        num_labels=plan.num_classes(),
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
        **({} if held_out is None else _measured(plan, head.logits(held_out))),
    }
    return Fitted(head=head, tried=tried, figures=figures)


class Embedder:
    """Rows to features; the trunk is loaded when the cache lacks some.

    Args:
        fitting: What is fitted.

    Attributes:
        reading: What turns a text into its features.
        embedded: How many rows the trunk has read.
    """

    def __init__(self, fitting: Fitting) -> None:
        self.plan, self.embedded, self._trunk = fitting.plan, 0, None
        plan, section = fitting.plan, fitting.plan.recipe.model
        dtype = weight_dtype(plan)
        if dtype == "auto":
            dtype = plan.config.dtype or torch.float32
        self.reading = Reading(
            base_model_name_or_path=plan.location,
            revision=section.revision,
            config={**section.config, **plan.config_changes},
            dtype=str(dtype).removeprefix("torch."),
            encoder_only=plan.config.is_encoder_decoder,
            pooling=fitting.pooling,
            layer=cast(Probe, plan.method).config.layer,
        )
        config = plan.config.to_dict()
        self._decides = {
            "weights": weights_fingerprint(plan.location, _commit(plan)),
            "config": {name: config[name] for name in config.keys() - NOT_THE_TRUNK},
            "dtype": self.reading.dtype,
            "pooling": self.reading.pooling,
            "layer": self.reading.layer,
            "attn_implementation": section.attention,
            "device": plan.arguments.device.type,
        }

    def __call__(self, rows: Dataset) -> NDArray[np.float32]:
        """Return the features of encoded rows, shape ``(rows, D)``."""
        return cached_features(features_key(rows, **self._decides), partial(self._embed, rows))

    def _embed(self, rows: Dataset) -> NDArray[np.float32]:
        self.embedded += len(rows)
        return embed(
            self.trunk(),
            rows,
            self.plan.task.collator(self.plan.tokenizer),
            pooling=self.reading.pooling,
            layer=self.reading.layer,
            batch_size=self.plan.arguments.per_device_eval_batch_size,
        )

    def trunk(self) -> Any:
        """Return the frozen trunk."""
        if self._trunk is None:
            plan, section = self.plan, self.plan.recipe.model
            self._trunk = load_trunk(
                plan.location,
                plan.config,
                dtype=getattr(torch, self.reading.dtype),
                revision=section.revision,
                attn_implementation=section.attention,
            ).to(plan.arguments.device)
        return self._trunk


def _commit(plan: Plan) -> str | None:
    """The Hub's commit that the config came from; a folder has none."""
    return getattr(plan.config, "_commit_hash", None)


def _chosen(tried: list[dict[str, Any]], estimator: Estimator) -> dict[str, Any]:
    """The best candidate, in short."""
    best = [one for one in tried if one["best"]]
    if not best:
        return {}
    params = {name: best[0][name] for name in estimator.grid}
    return {"best_params": params, f"cv_{estimator.scoring}": best[0]["cv_score"]}


def _measured(plan: Plan, logits: Tensor) -> dict[str, Any]:
    """The task's metrics on the validation rows, class by class where there are classes."""
    assert plan.validation is not None
    labels = torch.as_tensor(np.asarray(plan.validation.dataset["labels"][:]))
    kept = {name: value.numpy() for name, value in plan.task.eval_outputs(logits, labels).items()}
    plan.task.calibrate(kept)
    metrics = {f"eval_{name}": value for name, value in plan.task.all_metrics(kept).items()}
    per_class = plan.task.per_class(kept)
    return {**metrics, **({"eval_per_class": per_class} if per_class else {})}
