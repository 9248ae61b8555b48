# SPDX-License-Identifier: Apache-2.0
"""A conversation with a language model: what was said, what still fits, answers as they come."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase, TextStreamer

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.data.chat_template import Message, render
from hftune.tasks.inference import free_positions

NEW_TOKENS = 512

Write = Callable[[str], Any]


@dataclass
class Conversation:
    """A model and what was said so far.

    Attributes:
        model: Generates.
        tokenizer: Its tokenizer, with a chat template or without.
        sampling: Arguments of ``generate``.
        max_new_tokens: Length of an answer, if the user gave it.
        messages: ``{role, content}``, the system message first.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    sampling: dict[str, Any]
    max_new_tokens: int | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.has_template = self.tokenizer.chat_template is not None
        self.positions = free_positions(self.model)
        longest = self.model.generation_config.max_new_tokens or NEW_TOKENS
        if self.positions is not None:
            longest = min(longest, self.positions // 2)
        self.room = self.max_new_tokens or longest
        if self.positions is not None and self.room >= self.positions:
            raise HftuneError(
                f"max_new_tokens: {self.room} leaves no room in {self.positions} positions"
            )

    def set_system(self, text: str | None) -> None:
        """Put a system message in place of the one before; none for None."""
        if text and not self.has_template:
            raise HftuneError("the tokenizer has no chat template, so there is no system message")
        turns = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *turns] if text else turns

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"]

    def ask(self, text: str, write: Write) -> str:
        """Answer a line, handing the answer to ``write`` as it comes.

        An answer that is interrupted is kept as far as it came. A line that gets none is forgotten.

        Raises:
            HftuneError: The line alone is too long, or the template refuses the conversation.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        streamer = Streamer(self.tokenizer, write)
        try:
            batch = self._fitting_prompt().to(self.model.device)
            with torch.inference_mode():
                self.model.generate(
                    **batch, **self.sampling, streamer=streamer, max_new_tokens=self.room,
                    eos_token_id=self._ends(), pad_token_id=self._padding(),
                    num_beams=1,
                )  # fmt: skip
        except KeyboardInterrupt:
            streamer.end()  # type: ignore[no-untyped-call]
            raise
        finally:
            answer = {"role": "assistant", "content": streamer.text.strip()}
            self.messages = [*self.messages, answer] if answer["content"] else before
        return streamer.text

    def _fitting_prompt(self) -> BatchEncoding:
        """Encode the conversation; the oldest exchanges go where it has become too long."""
        dropped = 0
        while True:
            batch = self._encode()
            length = batch["input_ids"].shape[1]
            if self.positions is None or length + self.room <= self.positions:
                break
            turns = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
            if len(turns) == 1 or not self.has_template:
                raise HftuneError(
                    f"the line makes {length} tokens; the model takes "
                    f"{self.positions - self.room}, with {self.room} left for the answer"
                )
            del self.messages[turns[0] : turns[1]]
            dropped += 1
        if dropped:
            say(f"(forgot the oldest {dropped} of the exchanges: the context is full)")
        return batch

    def _encode(self) -> BatchEncoding:
        text = self.messages[-1]["content"]
        if self.has_template:
            text = render(self.tokenizer, self.messages, prompt=True)
        batch: BatchEncoding = self.tokenizer(
            text, add_special_tokens=not self.has_template, return_tensors="pt"
        )
        return batch

    def _ends(self) -> list[int] | None:
        """The tokens that end an answer: the model's, the tokenizer's, the template's."""
        known = self.model.generation_config.eos_token_id
        ends = {*(known if isinstance(known, list) else [known]), self.tokenizer.eos_token_id}
        if self.has_template:
            ends.add(_end_of_turn(self.tokenizer))
        return sorted(ends - {None}) or None

    def _padding(self) -> int | None:
        padding: int | None = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if padding is None else padding


class Streamer(TextStreamer):
    """Hands on the answer word by word, and keeps it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece; the line ends with the answer."""
        self.text += text
        self.write(f"{text}\n" if stream_end else text)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the template writes after an assistant's words, if there is one."""
    words = "the answer"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
    try:
        after = render(tokenizer, turns).rpartition(words)[2]
    except HftuneError:
        return None
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return ids[0] if ids and ids[0] in special else None
