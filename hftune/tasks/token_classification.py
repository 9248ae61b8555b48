# SPDX-License-Identifier: Apache-2.0
"""``token-classification``: a tag for each word of a row, such as entities or parts of speech.

The tag of a word is the label of its first sub-word; the other sub-words have none.
"""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from rich.text import Text
from torch import Tensor, nn
from transformers import (
    AutoModelForTokenClassification,
    DataCollator,
    DataCollatorForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.core.console import number_of, say
from hftune.core.errors import HftuneError
from hftune.data.arrow import codes, column_array
from hftune.data.columns import GROUP, Role
from hftune.data.same import column_keys
from hftune.data.split import Keys, joined_keys
from hftune.evaluation.entities import kind_of, marks_entities, scheme_of
from hftune.evaluation.tagging import per_tag_metrics, tagging_metrics
from hftune.losses.loss import aligned, counted, forward
from hftune.tasks.explain_inputs import ExplainInputs, ExplainOptions, encoded_for
from hftune.tasks.inference import batches_by_length
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.processors import Processor, as_tokenizer
from hftune.tasks.tags import lists_of, ordered_tags, placed_entities
from hftune.tasks.task import EvalArrays, EvalOutputs, PredictArguments
from hftune.tasks.text import SHOWN_TOKENS, TextTask
from hftune.tasks.words import WORD, tokenize_words


class TokenClassification(TextTask):
    """Words, or a text that is split at white space, and as many tags.

    Args:
        label_names: Tags by id; taken from the training rows if empty.
    """

    name = "token-classification"
    noun = "a tagger"
    counts_in = "words"
    auto_model = AutoModelForTokenClassification
    roles = (
        Role("tokens", ("words", "text", "sentence")),
        Role(
            "tags",
            ("ner_tags", "pos_tags", "chunk_tags", "upos", "labels", "label", "slots"),
            answer=True,
        ),
        GROUP,
    )

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        super().__init__(label_names)
        self._declared: list[str] = []

    @property
    def has_entities(self) -> bool:
        """Whether the tags mark entities, as ``B-city`` does, or are plain."""
        return marks_entities(self.label_names)

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """What :meth:`metrics` returns."""
        means = ("precision_macro", "recall_macro", "f1_macro")
        if self.has_entities:
            return ("loss", "accuracy", "precision", "recall", "f1", *means)
        return ("loss", "accuracy", *means, "precision_weighted", "recall_weighted", "f1_weighted")

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        """Entity F1, or accuracy of plain tags."""
        return "f1" if self.has_entities else "accuracy"

    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return ``tokens``, ``tags``, and ``text`` where the words come from one."""
        column = columns["tokens"]
        values = rows[column][:]
        if all(isinstance(value, str | None) for value in values):
            texts = [value or "" for value in values]
            words = [WORD.findall(text) for text in texts]
            selected: dict[str, list[Any]] = {"text": texts, "tokens": words}
        else:
            words = lists_of(values, column, "words")
            selected = {"tokens": words}
        if not any(words):
            raise HftuneError(f"column {column!r}: all {len(rows)} rows are empty")
        if "tags" in columns:
            selected["tags"] = self._tags(rows, columns["tags"], words)
        if "group" in columns:
            selected["group"] = rows[columns["group"]][:]
        return Dataset.from_dict(selected)

    def _tags(self, rows: Dataset, column: str, words: list[list[str]]) -> list[list[str]]:
        tags = lists_of(rows[column][:], column, "tags")
        inner = getattr(rows.features[column], "feature", None)
        if isinstance(inner, ClassLabel):
            self._declared = self._declared or list(inner.names)
            tags = [[inner.names[int(tag)] for tag in row] for row in tags]
        for number, (row, its_words) in enumerate(zip(tags, words, strict=True), start=1):
            if len(row) != len(its_words):
                raise HftuneError(
                    f"column {column!r}: row {number} has {len(row)} tags for "
                    f"{len(its_words)} words"
                )
        return tags

    def fit_labels(self, train: Dataset, validation: Dataset | None) -> None:
        """Collect the tags, unless they are known already; say how they are read.

        Raises:
            HftuneError: There is too little to tell apart, or the validation part has tags of its
                own.
        """
        tags = train["tags"][:]
        if self.label_names:
            self.check(train, "training")
        else:
            names = {tag for row in tags for tag in row}
            declared = names <= set(self._declared)
            self.label_names = self._declared if declared else ordered_tags(names)
        if len(self.label_names) < 2:
            raise HftuneError(
                f"there is nothing to tell apart: the only tag is {self.label_names[0]}"
                if self.label_names
                else "the training rows have no tags"
            )
        if self.has_entities:
            scheme, strays = scheme_of(tags)
            begin = number_of(strays, "entity begins", "entities begin")
            say(f"tags: {scheme}{f'; {begin} without B, taken as written' if strays else ''}")
        else:
            say("tags: plain, measured word by word")
        if validation is not None:
            self.check(validation, "validation")

    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if a part has tags that training does not know."""
        unknown = sorted({tag for row in rows["tags"] for tag in row} - set(self.label_names))
        if unknown:
            raise HftuneError(
                f"the {part} rows have tags that training does not know: {', '.join(unknown)}",
                hint=f"known tags: {', '.join(self.label_names)}",
            )

    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Keep equal sentences together, and groups; spread the rarest kinds of tags evenly."""
        groups = [codes(column_array(rows, "group"))[0]] if "group" in rows.column_names else []
        tags = rows["tags"][:]
        kinds = [{kind_of(tag) if tag[1:2] == "-" else tag for tag in row} for row in tags]
        counts = Counter(kind for row in kinds for kind in row)
        rarest: list[Hashable] = [
            min(row, key=lambda kind: (counts[kind], kind), default="") for row in kinds
        ]
        return joined_keys(column_keys(rows, "tokens"), *groups), rarest

    def preprocess(
        self, rows: Dataset, processor: Processor, max_length: int | None
    ) -> ProcessedDataset:
        """Tokenize and give each word's tag to its first sub-word; see :class:`Task`.

        Rows without words are dropped where there are tags. Words that were cut, or that the
        tokenizer makes nothing of, are counted and warned of.
        """
        tokenizer = as_tokenizer(processor)
        tokens, firsts, lengths = tokenize_words(rows, tokenizer, max_length)
        columns = {key: list(tokens[key]) for key in tokens if key != "offset_mapping"}
        cut = sum(length > (max_length or math.inf) for length in lengths)
        if "tags" not in rows.column_names:
            return ProcessedDataset(Dataset.from_dict(columns), num_truncated=cut, sizes=lengths)
        ids = {name: index for index, name in enumerate(self.label_names)}
        columns["labels"] = [
            _labels(len(row), [ids[tag] for tag in tags], first)
            for row, tags, first in zip(columns["input_ids"], rows["tags"], firsts, strict=True)
        ]
        trained = [any(index is not None for index in first) for first in firsts]
        if not any(trained):
            raise HftuneError(
                f"none of the {len(rows)} rows has a word with a tag after cutting to {max_length}"
            )
        kept = {key: list(itertools.compress(column, trained)) for key, column in columns.items()}
        return ProcessedDataset(Dataset.from_dict(kept), cut, trained.count(False), lengths)

    def collator(self, processor: Processor, model: nn.Module | None = None) -> DataCollator:
        """Pad to the longest row of the batch, labels with -100."""
        tokenizer = as_tokenizer(processor)
        return DataCollatorForTokenClassification(tokenizer)

    def configure(self, config: PreTrainedConfig, processor: Processor) -> dict[str, Any]:
        """Set the labels, and the padding token where the model has another; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        config.id2label = dict(enumerate(self.label_names))
        config.label2id = {name: index for index, name in enumerate(self.label_names)}
        if config.get_text_config().pad_token_id == tokenizer.pad_token_id:
            return {}
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return {"pad_token_id": tokenizer.pad_token_id}

    def class_counts(self, encoded: Dataset, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count the words of each tag; see :class:`Task`."""
        labels = np.fromiter(itertools.chain.from_iterable(encoded["labels"]), dtype=np.int64)
        return np.bincount(labels[labels != -100], minlength=len(self.label_names))

    def classes(self, processor: Processor, num_classes: int) -> list[str]:
        """Return the tags; see :class:`Task`."""
        return self.label_names

    def _shown(
        self, row: Mapping[str, Any], example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> Text:
        """Return the tokens, each with its tag in green behind it."""
        text = Text()
        for token, label in list(zip(row["input_ids"], row["labels"], strict=True))[:SHOWN_TOKENS]:
            text.append(f"{str(tokenizer.decode([token])).strip()} ")
            if label != -100:
                text.append(f"{self.label_names[label]} ", style="green")
        return text

    def explain_inputs(
        self, model: Any, processor: Processor, text: str, options: ExplainOptions
    ) -> ExplainInputs:
        """Read a text, whose words stand between white space; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        encoded = encoded_for(tokenizer, text, options)
        limit = encoded.inputs["input_ids"].shape[1] if encoded.num_truncated else None
        words = WORD.findall(text)
        rows = Dataset.from_dict({"text": [text], "tokens": [words]})
        how = PredictArguments(max_length=limit, batch_size=1)
        (answer,) = self.predict(model.eval(), tokenizer, rows, how)
        _, (firsts,), _ = tokenize_words(rows, tokenizer, limit, warns=False)
        tags = dict(zip(firsts, answer["prediction"], strict=True))
        scores = [
            {"name": tag, "probability": share, "word": word}
            for word, tag, share in zip(words, answer["prediction"], answer["scores"], strict=True)
        ]
        entities = {"entities": answer["entities"]} if "entities" in answer else {}
        return ExplainInputs(
            inputs=encoded.inputs,
            tokens=[replace(one, output=tags.get(i)) for i, one in enumerate(encoded.tokens)],
            prediction={"kind": "tags", "scores": scores, **entities},
        )

    def eval_outputs(self, logits: Tensor, labels: Tensor) -> EvalOutputs:
        """Keep each row's summed loss, its number of words, and predicted ids beside labels."""
        here = counted(labels)
        losses = F.cross_entropy(*aligned(logits, labels, causal=False), reduction="none")
        sums = torch.zeros(len(labels), device=logits.device, dtype=losses.dtype)
        sums.index_add_(0, here.nonzero()[:, 0], losses)
        predicted = logits[:, -labels.shape[1] :].argmax(-1)  # virtual tokens stand before
        return {
            "loss": sums,
            "words": here.sum(1),
            "predicted": predicted.masked_fill(~here, -100),
            "labels": labels,
        }

    def metrics(self, outputs: EvalArrays) -> dict[str, float]:
        """Return the loss a word, and how well entities or plain tags are found."""
        loss = float(outputs["loss"].sum(dtype=np.float64) / outputs["words"].sum())
        return {
            "loss": loss,
            **tagging_metrics(
                *self.predictions_and_references(outputs), entities=self.has_entities
            ),
        }

    def per_class(self, outputs: EvalArrays) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1 and support of each kind of entity, or each plain tag."""
        return per_tag_metrics(*self.predictions_and_references(outputs), self.label_names)

    def predictions_and_references(self, outputs: EvalArrays) -> tuple[list[Any], list[Any]]:
        """Return a list of tags a row, as seqeval takes them; see :class:`Task`."""
        names = np.array(self.label_names, dtype=object)
        rows = [
            (names[predicted[labels != -100]].tolist(), names[labels[labels != -100]].tolist())
            for predicted, labels in zip(outputs["predicted"], outputs["labels"], strict=True)
        ]
        return [predicted for predicted, _ in rows], [labels for _, labels in rows]

    def predict(
        self,
        model: Any,
        processor: Processor,
        rows: Dataset,
        how: PredictArguments,
    ) -> list[dict[str, Any]]:
        """Return a tag a word as ``prediction``, its probability, and ``entities``.

        A word that was cut, or that the tokenizer makes nothing of, has null for both.
        """
        tokenizer = as_tokenizer(processor)
        rows = rows.remove_columns("tags") if "tags" in rows.column_names else rows
        encoded = self.preprocess(rows, tokenizer, how.max_length).dataset
        _, firsts, _ = tokenize_words(rows, tokenizer, how.max_length, warns=False)
        collate = self.collator(tokenizer)
        answers: list[dict[str, Any]] = [{}] * len(rows)
        for indices in batches_by_length(
            [len(ids) for ids in encoded["input_ids"]], how.batch_size
        ):
            batch: Any = collate([encoded[index] for index in indices])
            with torch.inference_mode():
                logits = forward(model, batch.to(model.device)).logits.float().cpu()
            mask = batch["attention_mask"].bool().cpu()
            shares = logits[:, -mask.shape[1] :].softmax(-1)
            for index, its_shares, here in zip(indices, shares, mask, strict=True):
                answers[index] = self._answer(rows[index], its_shares[here], firsts[index])
        return answers

    def _answer(
        self, row: Mapping[str, Any], shares: Tensor, firsts: list[int | None]
    ) -> dict[str, Any]:
        """Read the tags off the probabilities ``(tokens, tags)`` of a row."""
        best = shares.max(-1)
        seen = [None if first is None else int(best.indices[first]) for first in firsts]
        tags = [None if index is None else self.label_names[index] for index in seen]
        scores = [None if first is None else float(best.values[first]) for first in firsts]
        answer: dict[str, Any] = {"prediction": tags, "scores": scores}
        if not self.has_entities:
            return answer
        answer["entities"] = placed_entities(row, tags, scores)
        return answer


def _labels(length: int, ids: Sequence[int], firsts: Sequence[int | None]) -> list[int]:
    labels = [-100] * length
    for label, first in zip(ids, firsts, strict=True):
        if first is not None:
            labels[first] = label
    return labels
