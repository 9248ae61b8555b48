# SPDX-License-Identifier: Apache-2.0
"""``text-generation``: causal language models on chat messages, prompts with answers, plain text.

The loss counts what the assistant says, the end of its turn included, and nothing else; of plain
text it counts every token.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    DataCollator,
    DataCollatorForSeq2Seq,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.data.arrow import codes, column_array, column_batches
from hftune.data.blocks import joined_blocks, separate_blocks
from hftune.data.chat_template import (
    RewrittenTurnsError,
    assistant_spans,
    before_answer,
    open_question,
    render,
)
from hftune.data.contents import Kind
from hftune.data.conversations import without_nulls
from hftune.data.same import column_keys, folded, hashes
from hftune.data.shapes import ROLES, select_shape, shape_columns
from hftune.data.split import Keys, joined_keys
from hftune.tasks.explain_inputs import ExplainInputs, ExplainOptions, generated_ids, next_tokens
from hftune.tasks.forms import Form
from hftune.tasks.generation import GenerationTask
from hftune.tasks.inference import GREEDY, free_positions, generated
from hftune.tasks.processed import NothingTrainedError, ProcessedDataset
from hftune.tasks.processors import Processor, as_tokenizer
from hftune.tasks.task import PredictArguments, Task
from hftune.tasks.token_texts import encode_prompt, read_tokens
from hftune.tasks.trained_spans import documents, encode_spans


class TextGeneration(GenerationTask):
    """Rows are conversations, prompts with completions, or plain text.

    Args:
        block_size: Tokens of a block of plain text; the row's limit if None.
        pack_documents: Whether blocks are cut from all documents put end to end, or from each.
        system_prompt: Put before conversations that have no system turn.
        generation: What evaluation lets the model write; see :class:`GenerationTask`.
    """

    name = "text-generation"
    noun = "a language model"
    causal = True
    auto_model = AutoModelForCausalLM
    roles = ROLES

    def __init__(
        self,
        label_names: Sequence[str] = (),
        *,
        block_size: int | None = None,
        pack_documents: bool = True,
        system_prompt: str | None = None,
        generation: Mapping[str, Any] | bool | None = None,
    ) -> None:
        super().__init__(label_names, generation=generation)
        self.block_size = block_size
        self.pack_documents = pack_documents
        self.system_prompt = system_prompt
        self.shape = "messages"

    @classmethod
    def forms(cls) -> tuple[Form, ...]:
        """Return conversations, instructions, prompts, and plain text last; see :class:`Task`."""
        texts: tuple[Kind, ...] = ("text", "names")
        answers: tuple[Kind, ...] = (*texts, "labels")
        return (
            Form(cells={"messages": ("conversations",)}),
            Form(cells={"instruction": texts, "output": answers}),
            Form(cells={"prompt": ("text",), "completion": answers}),
            Form(cells={"text": texts}, last_resort=True),
        )

    def load_processor(self, path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
        """Return the tokenizer as it is: batches are padded by a copy; see :class:`Task`."""
        return as_tokenizer(Task.load_processor(self, path, revision))

    def one_row_each(self, rows: Dataset) -> bool:
        """Tell whether rows are no plain text, which is cut into blocks; see :class:`Task`."""
        return "text" not in rows.column_names

    def explain_inputs(
        self, model: Any, processor: Processor, text: str, options: ExplainOptions
    ) -> ExplainInputs:
        """Read a prompt as in training, a user's turn with a chat template, and go on with it."""
        tokenizer, number = as_tokenizer(processor), options.generate or 0
        limit = options.max_length - number
        positions = free_positions(model)
        if positions is not None:
            limit = min(limit, positions - number)
        if limit < 1:
            raise HftuneError(
                f"--generate: {number} tokens leave no room for the text",
                hint="generate fewer, or raise --max-length",
            )
        columns = options.columns
        trained_on_prompts = "prompt" in columns and "messages" not in columns
        if options.raw or tokenizer.chat_template is None or trained_on_prompts:
            encoded = encode_prompt(tokenizer, text, max_length=limit)
        else:
            prompt = render(tokenizer, [{"role": "user", "content": text}], prompt=True)
            encoded = encode_prompt(tokenizer, prompt, text, max_length=limit)
        if encoded.num_truncated:
            warn(
                f"the first {encoded.num_truncated} tokens were cut: {limit} of the prompt are "
                "read at most"
            )
        if not number:
            return ExplainInputs(inputs=encoded.inputs, tokens=encoded.tokens)
        settings = {**GREEDY, "max_new_tokens": number}
        ids = generated_ids(model, tokenizer, encoded.inputs, **settings)
        segments = [token.segment for token in encoded.tokens]
        segments += ["generated"] * (ids.shape[1] - len(segments))
        return ExplainInputs(
            inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            tokens=read_tokens(tokenizer, ids[0].tolist(), segments),
        )

    def prediction_of(self, logits: Tensor, processor: Processor) -> dict[str, Any]:
        """Return the most likely next tokens; see :class:`Task`."""
        return {"kind": "next_token", "scores": next_tokens(logits[0, -1], as_tokenizer(processor))}

    def options(self) -> dict[str, Any]:
        """Return what a saved model must remember; see :class:`Task`."""
        return {
            **super().options(),
            "block_size": self.block_size,
            "pack_documents": self.pack_documents,
            "system_prompt": self.system_prompt,
        }

    def columns(
        self, names: Sequence[str], given: Mapping[str, str], *, answers: bool = True
    ) -> dict[str, str]:
        """Return the columns of one shape; see :func:`hftune.data.shapes.shape_columns`."""
        return shape_columns(names, given)

    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return ``messages``, ``prompt`` and ``completion``, or ``text``; see :class:`Task`."""
        selected, self.shape = select_shape(rows, columns, self.system_prompt)
        return selected

    def fit_labels(self, train: Dataset, validation: Dataset | None) -> None:
        """Check the rows and say how they are read; there is nothing else to know of them."""
        self.check(train, "training")
        if validation is not None:
            self.check(validation, "validation")
        if self.shape not in ("messages", "pairs"):
            say(f"rows are read as {self.shape}")

    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if there are no answers in a part; plain text needs none."""
        if "text" in rows.column_names:
            if self.generation is not None:
                raise HftuneError("evaluation.generation: plain text has no questions to answer")
            return
        if self.block_size is not None or not self.pack_documents:
            key = "block_size" if self.block_size is not None else "pack_documents"
            raise HftuneError(f"data.{key}: only plain text is cut into blocks")
        if "messages" in rows.column_names:
            turns = (message["role"] for row in rows["messages"] for message in row)
            if "assistant" not in turns:
                raise HftuneError(f"no conversation of the {part} rows has an assistant turn")
        elif "completion" not in rows.column_names:
            raise HftuneError(
                f"the {part} rows have prompts and no completion; columns: {rows.column_names}",
                hint="say which: data: {columns: {completion: ...}}",
            )

    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Keep equal questions together, and groups; see :class:`Task`."""
        if "messages" in rows.column_names:
            batches = column_batches(rows, "messages")
            questions = np.concatenate(
                [hashes(folded(before_answer(row)) for row in b.to_pylist()) for b in batches]
            )
        else:
            questions = column_keys(rows, "prompt" if "prompt" in rows.column_names else "text")
        groups = [codes(column_array(rows, "group"))[0]] if "group" in rows.column_names else []
        return joined_keys(questions, *groups), None

    def preprocess(
        self, rows: Dataset, processor: Processor, max_length: int | None
    ) -> ProcessedDataset:
        """Tokenize, mark what is trained, cut from the right; see :class:`Task`.

        Plain text is cut into blocks instead, of which all is trained.

        Raises:
            HftuneError: No row has a trained token.
        """
        tokenizer = as_tokenizer(processor)
        self.tokenizer = tokenizer
        if "text" in rows.column_names:
            pieces = self._blocks(rows, tokenizer, max_length)
        else:
            if not tokenizer.is_fast:
                name = type(tokenizer).__name__
                raise HftuneError(f"{name} tells no offsets; a fast one is needed")
            pieces = (piece for row in rows for piece in self.encode_row(row, tokenizer))
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        lengths, cut = [], 0
        for ids, labels in pieces:
            lengths.append(len(ids))
            cut += max_length is not None and len(ids) > max_length
            kept = labels[:max_length]
            if any(label != -100 for label in kept[1:]):
                columns["input_ids"].append(ids[:max_length])
                columns["attention_mask"].append([1] * len(kept))
                columns["labels"].append(kept)
        expanded = 0
        if "messages" in rows.column_names and len(lengths) > len(rows):
            expanded = len(lengths) - len(rows)
        untrained = len(lengths) - len(columns["labels"])
        encoded = ProcessedDataset(Dataset.from_dict(columns), cut, untrained, lengths, expanded)
        if not columns["labels"]:
            raise NothingTrainedError(len(rows), max_length, encoded)
        return encoded

    def encode_row(
        self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of one row, uncut; labels are -100 where not trained.

        One pair, but for a conversation of which the template rewrites earlier turns: that gives
        one for each assistant turn, which then stands last.
        """
        if "messages" not in row:
            text = row["prompt"] + row["completion"]
            return [encode_spans(text, [(len(row["prompt"]), len(text))], tokenizer, chat=False)]
        if tokenizer.chat_template is None:
            raise HftuneError(
                "the tokenizer has no chat template, so messages cannot be rendered",
                hint="take an instruction-tuned model, or prompt and completion columns",
            )
        messages = without_nulls(row["messages"])
        tools = json.loads(row["tools"]) if row.get("tools") else None
        first = row.get("context_turns") or 1
        try:
            rendered = [assistant_spans(tokenizer, messages, tools=tools, first=first)]
        except RewrittenTurnsError:
            rendered = [
                assistant_spans(tokenizer, messages[: index + 1], tools=tools, first=index)
                for index, message in enumerate(messages)
                if message["role"] == "assistant" and index >= first
            ]
        return [encode_spans(text, spans, tokenizer, chat=True) for text, spans in rendered]

    def _blocks(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Iterator[tuple[list[int], list[int]]]:
        size = self.block_size or max_length
        if size is None:
            raise HftuneError("the model takes texts of any length; set data.block_size")
        if max_length is not None and size > max_length:
            raise HftuneError(f"data.block_size: {size} is beyond the limit of {max_length} tokens")
        if self.pack_documents and tokenizer.eos_token_id is None:
            raise HftuneError(
                "the tokenizer has no EOS to set between documents",
                hint="data.pack_documents: false keeps them apart",
            )
        cut = joined_blocks if self.pack_documents else separate_blocks
        for block in cut(documents(rows, tokenizer), size):
            yield block, block

    def collator(self, processor: Processor, model: nn.Module | None = None) -> DataCollator:
        """Pad to the longest row; padding is known by its place, so an EOS stays trained."""
        tokenizer = as_tokenizer(processor)
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)  # the saved one stays as it was
            tokenizer.pad_token = tokenizer.eos_token
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)

    def configure(self, config: PreTrainedConfig, processor: Processor) -> dict[str, Any]:
        """Check that the model is a decoder alone; leave its config as it is."""
        if config.is_encoder_decoder:
            raise HftuneError(
                f"model.path: {config.model_type} is an encoder with a decoder",
                hint="take task: text2text-generation",
            )
        self.resolve_length(config)
        return {}

    def questions(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what stands before the first trained token, padded on the left, and the answer.

        Of a conversation that is the first answer. A prompt that leaves no room for an answer is
        cut at its beginning.
        """
        assert self.generation is not None
        positions = free_positions(model)
        room = None if positions is None else max(positions - self.generation["max_new_tokens"], 1)
        ids, labels = inputs["input_ids"], inputs["labels"]
        prompts, answers = [], []
        for row, marks, real in zip(ids, labels, inputs["attention_mask"], strict=True):
            length = int(real.sum())
            trained = [t for t in range(1, length) if marks[t] != -100]
            start = trained[0] if trained else length
            stop = next((t for t in range(start, length) if marks[t] == -100), length)
            prompts.append(row[:start][-room if room else 0 :])
            answers.append(row[start:stop])
        mask = [torch.ones_like(prompt) for prompt in prompts]
        return (
            pad_sequence(prompts, True, self.pad_token_id, padding_side="left"),
            pad_sequence(mask, True, 0, padding_side="left"),
            pad_sequence(answers, True, -100),
        )

    def predict(
        self,
        model: Any,
        processor: Processor,
        rows: Dataset,
        how: PredictArguments,
    ) -> list[dict[str, Any]]:
        """Return the generated text; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        chat = "messages" in rows.column_names
        if chat:
            prompts = [
                render(
                    tokenizer,
                    open_question(without_nulls(row["messages"])),
                    prompt=True,
                    tools=json.loads(row["tools"]) if row.get("tools") else None,
                )
                for row in rows
            ]
        else:  # plain text is continued
            prompts = list(rows["prompt" if "prompt" in rows.column_names else "text"])
        positions = free_positions(model)
        texts = generated(
            model,
            tokenizer,
            prompts,
            batch_size=how.batch_size,
            max_new_tokens=how.max_new_tokens,
            max_length=None if positions is None else max(positions - how.max_new_tokens, 1),
            add_special_tokens=not chat,
            options=self.generation or {},
        )
        return [{"prediction": text} for text in texts]
