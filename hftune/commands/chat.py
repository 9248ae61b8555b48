# SPDX-License-Identifier: Apache-2.0
"""``hftune chat``: talk to a run, an adapter or a model; answers appear as they are written."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase, TextStreamer, set_seed

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.data.chat import Message, render
from hftune.hub.language_model import WRITERS, load_language_model
from hftune.hub.save import read_facts
from hftune.methods.peft_tuners import register_tuners
from hftune.tasks.inference import free_positions
from hftune.training.run import RECIPE_FILE, Run

NEW_TOKENS = 512
HELP = """\
/reset          forget the conversation
/system TEXT    set the system message; without TEXT, remove it
/help           this list
/exit           leave, as Ctrl-D does
Ctrl-C stops an answer. A line that is to begin with / needs a space before it."""

Write = Callable[[str], Any]


def chat(
    model: Run | str | Path,
    *,
    lines: Iterable[str] | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> list[Message]:
    """Answer line after line until there are no more.

    A model with a chat template remembers the conversation; one without continues each line as
    plain text. What is not given here is as the model's generation config has it.

    Args:
        model: A run, an adapter or a model: a folder, a Hub id, or a demo model.
        lines: What the user says; standard input when None.
        system: The system message.
        max_new_tokens: Length of an answer; 512 or half of the model's positions at most, unless
            the generation config has it.
        temperature: Draw from the sharpened (below 1) or flattened (above) distribution; 0 takes
            the most likely token.
        top_p: Draw from the likeliest tokens that have this share together, in (0, 1].
        seed: Seed of the drawing.

    Returns:
        The conversation, as far as it was kept.

    Raises:
        HftuneError: The model writes no text, or cannot be found; or a line is too long, unless it
            was typed.
    """
    sampling = _sampling(temperature, top_p)
    loaded, tokenizer = _load(model)
    talk = Conversation(loaded, tokenizer, sampling, max_new_tokens=max_new_tokens)
    talk.set_system(system)
    if seed is not None:
        set_seed(seed)
    typed = lines is None and sys.stdin.isatty()
    if typed:
        kind = "a conversation" if talk.has_template else "plain text: each line is continued"
        say(f"{kind}; /help lists the commands")
    for line in _typed_lines() if typed else (sys.stdin if lines is None else lines):
        text = line.rstrip("\n")
        if text.startswith("/"):
            if not _command(text, talk):
                break
        elif text.strip():
            _answer(talk, text, go_on=typed)
    return talk.messages


def _answer(talk: "Conversation", text: str, *, go_on: bool) -> None:
    try:
        talk.ask(text.strip() if talk.has_template else text, _print)
    except HftuneError as error:
        if not go_on:
            raise
        warn(str(error))
    except KeyboardInterrupt:
        if not go_on:
            raise
        say(" (stopped)")


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


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


def _sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    if temperature is not None and temperature < 0:
        raise HftuneError(f"temperature: at least 0, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise HftuneError(f"top_p: above 0 and at most 1, got {top_p}")
    if temperature == 0:
        if top_p is not None:
            raise HftuneError("top_p has no effect with temperature 0, which draws nothing")
        return {"do_sample": False}
    given = {"temperature": temperature, "top_p": top_p}
    chosen = {key: value for key, value in given.items() if value is not None}
    return {"do_sample": True, **chosen} if chosen else {}


def _load(model: Run | str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    run = model if isinstance(model, Run) else Run(model)
    if isinstance(model, Run) or _is_run(run):
        if run.task.auto_model not in WRITERS:
            raise HftuneError(
                f"{run.path}: a run of {run.task.name} writes no text",
                hint=f"hftune predict {run.path} DATA OUTPUT",
            )
        return run.model.eval(), run.tokenizer
    register_tuners()
    return load_language_model(str(model))


def _is_run(run: Run) -> bool:
    finished = read_facts(run.model_path) is not None
    return finished or (run.path / RECIPE_FILE).is_file()


def _command(line: str, talk: Conversation) -> bool:
    """Obey a line that begins with /; False to leave."""
    name, _, text = line.partition(" ")
    if name == "/exit":
        return False
    if name == "/reset":
        talk.reset()
        say("(forgotten)")
    elif name == "/system":
        try:
            talk.set_system(text.strip() or None)
            say("(system message set)" if text.strip() else "(no system message)")
        except HftuneError as error:
            warn(str(error))
    elif name == "/help":
        say(HELP)
    else:
        warn(f"unknown command {name}; /help lists them")
    return True


def _typed_lines() -> Iterator[str]:
    """Lines from the terminal, until Ctrl-D; the prompt keeps out of piped output."""
    with suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input)
    while True:
        try:
            if sys.stdout.isatty():
                yield input("> ")
            else:
                sys.stderr.write("> ")
                sys.stderr.flush()
                yield input()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("\n(Ctrl-D leaves)")
