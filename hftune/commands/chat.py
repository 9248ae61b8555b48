# SPDX-License-Identifier: Apache-2.0
"""``hftune chat``: talk to a run, an adapter or a model; answers are streamed."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.data.chat_template import Message
from hftune.methods.peft_tuners import register_tuners
from hftune.models.load_generator import WRITERS, load_language_model
from hftune.models.save import read_metadata
from hftune.runs.conversation import Conversation
from hftune.runs.run import RECIPE_FILE, Run

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message; without TEXT, remove it
/help           this list
/exit           leave, as Ctrl-D does
Ctrl-C stops an answer. A line that is to begin with / needs a space before it."""


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
    """Answer the lines of a user, one after the other.

    A model with a chat template remembers the conversation; one without continues each line as
    plain text. Settings that are not given come from the model's generation config.

    Args:
        model: A run, an adapter or a model: a folder, a Hub id, or a demo model.
        lines: Lines of the user; standard input if None.
        system: The system message.
        max_new_tokens: Maximum length of an answer. If neither this nor the generation config gives
            it, it is 512 or half of the model's positions, the smaller of the two.
        temperature: Temperature of sampling; 0 takes the most likely token.
        top_p: Sample from the most likely tokens whose probabilities add up to this, in (0, 1].
        seed: Seed of sampling.

    Returns:
        The messages of the conversation that the model remembers.

    Raises:
        HftuneError: The model writes no text or cannot be found, or a line that was not typed in a
            terminal is too long.
    """
    sampling = _sampling(temperature, top_p)
    loaded, tokenizer = _load(model)
    talk = Conversation(loaded, tokenizer, sampling, max_new_tokens=max_new_tokens)
    talk.set_system(system)
    _converse(talk, lines, seed)
    return talk.messages


def _converse(talk: Conversation, lines: Iterable[str] | None, seed: int | None) -> None:
    """Answer the given lines or those of standard input until they end."""
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


def _answer(talk: Conversation, text: str, *, go_on: bool) -> None:
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


def _sampling(temperature: float | None, top_p: float | None) -> dict[str, float]:
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
    finished = read_metadata(run.model_path) is not None
    return finished or (run.path / RECIPE_FILE).is_file()


def _command(line: str, talk: Conversation) -> bool:
    """Run a command such as /reset; return False to leave the conversation."""
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
    """Yield lines from the terminal until Ctrl-D; keep the prompt out of piped output."""
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
