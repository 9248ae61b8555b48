# SPDX-License-Identifier: Apache-2.0
"""What the tasks share whose answers are written: token losses, and texts judged at evaluation."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from hftune.core.errors import RecipeError
from hftune.evaluation.generation_metrics import GENERATION_METRICS, generation_metrics
from hftune.evaluation.language_modelling import language_modelling_metrics
from hftune.losses.of_rows import token_losses, token_losses_of
from hftune.models.structure import num_positions
from hftune.tasks.inference import GREEDY, free_positions
from hftune.tasks.processors import Processor, as_tokenizer
from hftune.tasks.task import EvalArrays, EvalOutputs
from hftune.tasks.text import TextTask

#: Short, so that evaluation stays cheap.
MAX_NEW_TOKENS = 64


class GenerationTask(TextTask):
    """A task whose labels are tokens and whose answers are texts.

    Args:
        label_names: None; texts have no labels.
        generation: Fields of ``GenerationConfig`` for the texts that evaluation lets the model
            write and judges; True for greedy ones, False or None for none.

    Attributes:
        generation: The fields in force, or None.
    """

    def __init__(
        self,
        label_names: Sequence[str] = (),
        *,
        generation: Mapping[str, Any] | bool | None = None,
    ) -> None:
        super().__init__(label_names)
        self.generation: dict[str, Any] | None = None
        if generation is not None and generation is not False:
            given = {} if generation is True else generation
            self.generation = _checked({**GREEDY, **given})
        self.tokenizer: PreTrainedTokenizerBase | None = None  # set by what encodes

    def options(self) -> dict[str, Any]:
        """Return what a saved model must remember; see :class:`Task`."""
        return {"label_names": self.label_names, "generation": self.generation or False}

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """What :meth:`metrics` returns and a best model can be chosen by."""
        written = () if self.generation is None else GENERATION_METRICS
        return ("loss", "perplexity", *written)

    @property
    def gives_predictions(self) -> bool:  # type: ignore[override]
        """Whether evaluation lets the model write."""
        return self.generation is not None

    def resolve_length(self, config: PreTrainedConfig, default: int = MAX_NEW_TOKENS) -> None:
        """Decide how long a written text may be.

        Raises:
            RecipeError: The recipe asks for more than the model has positions.
        """
        if self.generation is None:
            return
        positions = num_positions(config)
        room = None if positions is None else positions - 1
        asked = self.generation.get("max_new_tokens")
        if asked is None:
            self.generation["max_new_tokens"] = default if room is None else min(default, room)
        elif room is not None and asked > room:
            raise RecipeError(
                [f"evaluation.generation.max_new_tokens: {asked} is beyond the {room} that the "
                 "model's positions leave"]
            )  # fmt: skip

    def class_counts(self, encoded: Dataset, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count how often each token is trained; see :class:`Task`."""
        counts = np.zeros(num_classes, dtype=np.int64)
        for labels in encoded["labels"]:
            trained = [label for label in labels[int(self.causal) :] if label != -100]
            np.add.at(counts, trained, 1)
        return counts

    def classes(self, processor: Processor, num_classes: int) -> list[str]:
        """Return the tokens; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        tokens = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), num_classes))))
        return [*tokens, *(f"<unused {i}>" for i in range(len(tokens), num_classes))]

    def eval_outputs(self, logits: Tensor, labels: Tensor) -> EvalOutputs:
        """Keep the summed loss and the number of trained tokens of each row."""
        sums, tokens = token_losses(logits, labels, causal=self.causal)
        return {"loss": sums, "tokens": tokens}

    def evaluation_step(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> EvalOutputs:
        """Keep the loss and, where evaluation generates, what was asked, meant and written.

        The three are token ids ``(B, length)``, padded with -100.
        """
        if self.causal:
            sums, tokens = token_losses_of(model, inputs)
            outputs: EvalOutputs = {"loss": sums, "tokens": tokens}
        else:
            outputs = super().evaluation_step(model, inputs)
        if self.generation is None:
            return outputs
        ids, mask, references = self.questions(model, inputs)
        return {
            **outputs,
            "sources": ids.masked_fill(mask == 0, -100),
            "references": references,
            "generated": self._write(model, ids, mask),
        }

    @abstractmethod
    def questions(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return token ids to answer, their mask, and the reference ids padded with -100."""

    def _write(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """Generate; what comes after the end of a text is -100."""
        assert self.generation is not None
        options, positions = dict(self.generation), free_positions(model)
        if model.config.is_encoder_decoder and positions is not None:
            options["max_new_tokens"] = min(options["max_new_tokens"], positions - 1)
        produced: Tensor = model.generate(
            input_ids=ids, attention_mask=mask, pad_token_id=self.pad_token_id, **options
        )
        asked = 1 if model.config.is_encoder_decoder else ids.shape[1]  # 1: the decoder's start
        produced = produced[:, asked:]
        eos = self.generation.get("eos_token_id", model.generation_config.eos_token_id)
        if eos is None:
            return produced
        ends = torch.isin(produced, torch.as_tensor(eos, device=produced.device)).long()
        return produced.masked_fill(ends.cumsum(1) - ends > 0, -100)

    @property
    def pad_token_id(self) -> int:
        """What fills up a batch: the padding token, or EOS where there is none."""
        tokenizer: Any = self.tokenizer
        padding = tokenizer.pad_token_id
        return int(tokenizer.eos_token_id if padding is None else padding)

    def metrics(self, outputs: EvalArrays) -> dict[str, float]:
        """Return the token-weighted loss and perplexity, and how good the written texts are."""
        figures = language_modelling_metrics(outputs["loss"], outputs["tokens"])
        if "generated" in outputs:
            figures |= generation_metrics(*self.predictions_and_references(outputs))
        return figures

    def predictions_and_references(self, outputs: EvalArrays) -> tuple[list[Any], list[Any]]:
        """Return the written texts and the references; see :class:`Task`."""
        return self._written(outputs["generated"]), self._given(outputs["references"])

    def samples(self, outputs: EvalArrays, number: int) -> list[dict[str, str]]:
        """Return the first rows' ``source``, ``reference`` and ``prediction``."""
        if "generated" not in outputs:
            return []
        columns = {
            "source": self._given(outputs["sources"][:number]),
            "reference": self._given(outputs["references"][:number]),
            "prediction": self._written(outputs["generated"][:number]),
        }
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _written(self, ids: NDArray[Any]) -> list[str]:
        """Decode as prediction does, without special tokens."""
        tokenizer: Any = self.tokenizer
        texts = tokenizer.batch_decode(_without(ids, [-100]), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _given(self, ids: NDArray[Any]) -> list[str]:
        """Decode and leave unknown tokens to be seen, so that no text without them equals it."""
        tokenizer: Any = self.tokenizer
        marks = {-100, *tokenizer.all_special_ids} - {unknown_token_id(tokenizer)}
        return [text.strip() for text in tokenizer.batch_decode(_without(ids, marks))]


def unknown_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of what the tokenizer does not know; None if it stands for an end, too."""
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def _without(ids: NDArray[Any], marks: Collection[int]) -> list[list[int]]:
    return [[int(token) for token in row if token not in marks] for row in ids]


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    try:
        GenerationConfig(**options).validate()
    except (ValueError, TypeError) as error:
        raise RecipeError([f"evaluation.generation: {error}"]) from error
    return options
