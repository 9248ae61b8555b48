# SPDX-License-Identifier: Apache-2.0
"""``text2text-generation``: encoder-decoder models that read a text and write another.

Translation, summarization and text from data are of this kind. The decoder is given the target
shifted by one, which the collator does with the model's own method; labels are not shifted.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from datasets import Dataset
from rich.text import Text
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollator,
    DataCollatorForSeq2Seq,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError, RecipeError
from hftune.data.arrow import as_dataset, codes, column_array
from hftune.data.columns import GROUP, Role
from hftune.data.contents import Kind
from hftune.data.same import column_keys
from hftune.data.shapes import texts
from hftune.data.split import Keys, joined_keys
from hftune.models.structure import num_positions
from hftune.tasks.explain_inputs import ExplainInputs, ExplainOptions, encoded_for, generated_ids
from hftune.tasks.forms import Form
from hftune.tasks.generation import MAX_NEW_TOKENS, GenerationTask, unknown_token_id
from hftune.tasks.inference import GREEDY, free_positions, generated
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.processors import Processor, as_tokenizer
from hftune.tasks.task import PredictArguments
from hftune.tasks.text import SHOWN_TOKENS, shown_ids
from hftune.tasks.token_texts import read_tokens


class Text2TextGeneration(GenerationTask):
    """Rows are ``text`` and ``target``.

    Args:
        label_names: None; texts have no labels.
        source_prefix: Put before every text, such as T5's ``summarize: ``.
        max_target_length: Tokens a target may have; as many as a text if None.
        generation: See :class:`GenerationTask`; greedy if None.
    """

    name = "text2text-generation"
    noun = "an encoder-decoder"
    auto_model = AutoModelForSeq2SeqLM
    roles = (
        Role("text", ("source", "input", "document", "article", "question", "src")),
        Role("target", ("summary", "output", "answer", "tgt"), answer=True),
        GROUP,
    )

    def __init__(
        self,
        label_names: Sequence[str] = (),
        *,
        source_prefix: str | None = None,
        max_target_length: int | None = None,
        generation: Mapping[str, Any] | bool | None = None,
    ) -> None:
        super().__init__(label_names, generation=True if generation is None else generation)
        self.source_prefix = source_prefix
        self.max_target_length = max_target_length

    @classmethod
    def forms(cls) -> tuple[Form, ...]:
        """Return a text of any name and a target that its name tells; see :class:`Task`."""
        cells: dict[str, tuple[Kind, ...]] = {
            "text": ("text", "names"),
            "target": ("text", "names", "labels"),
        }
        return (Form(cells=cells), *super().forms())

    def options(self) -> dict[str, Any]:
        """Return what a saved model must remember; see :class:`Task`."""
        return {
            **super().options(),
            "source_prefix": self.source_prefix,
            "max_target_length": self.max_target_length,
        }

    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return ``text`` and, where given, ``target`` and ``group``; see :class:`Task`."""
        return as_dataset(
            {
                role: (column_array if role == "group" else texts)(rows, column)
                for role, column in columns.items()
            }
        )

    def fit_labels(self, train: Dataset, validation: Dataset | None) -> None:
        """Check the rows; there is nothing else to know of them."""
        self.check(train, "training")
        if validation is not None:
            self.check(validation, "validation")

    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if a part has no targets."""
        if "target" not in rows.column_names:
            raise HftuneError(
                f"the {part} rows have no target; columns: {rows.column_names}",
                hint="say which: data: {columns: {target: ...}}",
            )

    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Keep equal texts together, and groups; see :class:`Task`."""
        groups = [codes(column_array(rows, "group"))[0]] if "group" in rows.column_names else []
        return joined_keys(column_keys(rows, "text"), *groups), None

    def configure(self, config: PreTrainedConfig, processor: Processor) -> dict[str, Any]:
        """Check that the model has an encoder and a decoder; leave its config as it is."""
        if not config.is_encoder_decoder:
            raise HftuneError(
                f"model.path: {config.model_type} has no encoder with a decoder",
                hint="for a decoder alone take task: text-generation",
            )
        positions, asked = num_positions(config), self.max_target_length
        if positions is not None and asked is not None and asked > positions:
            raise RecipeError(
                [f"data.max_target_length: {asked} is beyond the model's {positions} positions"]
            )
        self.resolve_length(config, asked or MAX_NEW_TOKENS)
        return {}

    def preprocess(
        self, rows: Dataset, processor: Processor, max_length: int | None
    ) -> ProcessedDataset:
        """Tokenize and cut; the end of a target that is cut is not trained; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        self.tokenizer = tokenizer
        texts = self._sources(rows)
        tokens = tokenizer(texts, truncation=False, verbose=False)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        cut = sum(length > (max_length or math.inf) for length in lengths)
        if cut:
            tokens = tokenizer(texts, truncation=True, max_length=max_length)
        columns = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        if "target" in rows.column_names:
            columns["labels"] = self._labels(rows["target"][:], tokenizer, max_length)
        return ProcessedDataset(Dataset.from_dict(columns), num_truncated=cut, sizes=lengths)

    def _sources(self, rows: Dataset) -> list[str]:
        prefix = self.source_prefix or ""
        return [prefix + text for text in rows["text"]]

    def _labels(
        self, targets: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> list[list[int]]:
        """Return the target's tokens, with EOS, cut from the right."""
        rows = tokenizer(text_target=targets, truncation=False, verbose=False)["input_ids"]
        eos, unknown = tokenizer.eos_token_id, unknown_token_id(tokenizer)
        whole = [ids if eos is None or ids[-1:] == [eos] else [*ids, eos] for ids in rows]
        limit = self.max_target_length or max_length
        if limit is not None and (cut := sum(len(ids) > limit for ids in whole)):
            say(f"targets cut at {limit} tokens: {cut} of {len(whole)}")
        lost = 0 if unknown is None else sum(unknown in ids for ids in whole)
        if lost:
            warn(
                "characters that the tokenizer does not know, so that the model cannot write them: "
                f"in {lost} of {len(whole)} targets"
            )
        return [ids[:limit] for ids in whole]

    def collator(self, processor: Processor, model: nn.Module | None = None) -> DataCollator:
        """Pad on the right, and let the model make ``decoder_input_ids`` of the labels."""
        tokenizer = as_tokenizer(processor)
        tokenizer = copy.deepcopy(tokenizer)  # the saved one stays as it was
        tokenizer.padding_side = "right"
        return DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100)

    def _shown(
        self, row: Mapping[str, Any], example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> Text:
        """Return the text, and the target in green."""
        target = tokenizer.decode(row["labels"][:SHOWN_TOKENS])
        return shown_ids(tokenizer, row["input_ids"]).append(f"  -> {target}", style="green")

    def explain_inputs(
        self, model: Any, processor: Processor, text: str, options: ExplainOptions
    ) -> ExplainInputs:
        """Read a text, with the prefix of training before it, and write the answer.

        The decoder reads its start and all of the answer but the last token, which it only writes.
        """
        tokenizer = as_tokenizer(processor)
        encoded = encoded_for(tokenizer, (self.source_prefix or "") + text, options)
        inputs: Any = encoded.inputs.to(model.device)
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        settings = {**GREEDY, **(self.generation or {})}
        number = options.generate or settings.get("max_new_tokens", MAX_NEW_TOKENS)
        positions = free_positions(model)
        if positions is not None:
            number = min(number, positions - 1)  # the start takes one
        settings["max_new_tokens"] = number
        ids = generated_ids(model, tokenizer, read, **settings)[:1]
        tokens = read_tokens(tokenizer, ids[0].tolist(), ["generated"] * ids.shape[1])
        answer = str(tokenizer.decode(ids[0, 1:], skip_special_tokens=True)).strip()
        return ExplainInputs(
            inputs={**read, "decoder_input_ids": ids[:, :-1]},
            tokens=encoded.tokens,
            decoder_tokens=[
                replace(one, output=following.text) for one, following in pairwise(tokens)
            ],
            prediction={"kind": "text", "scores": [{"name": answer, "probability": None}]},
        )

    def questions(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the texts and the targets; see :class:`GenerationTask`."""
        return inputs["input_ids"], inputs["attention_mask"], inputs["labels"]

    def predict(
        self,
        model: Any,
        processor: Processor,
        rows: Dataset,
        how: PredictArguments,
    ) -> list[dict[str, Any]]:
        """Return the written text; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        texts = generated(
            model,
            tokenizer,
            self._sources(rows),
            batch_size=how.batch_size,
            max_new_tokens=how.max_new_tokens,
            max_length=how.max_length,
            options=self.generation or {},
        )
        return [{"prediction": text} for text in texts]
