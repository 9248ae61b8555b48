# SPDX-License-Identifier: Apache-2.0
"""Answers equal what generate gives; the history, its end, commands, interruptions, refusals."""

import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hftune
from hftune import HftuneError, Recipe
from hftune.commands import chat as module
from hftune.data.chat_template import render
from hftune.runs.conversation import Conversation


@pytest.fixture
def plain_decoder(tiny_decoder: Path, tmp_path: Path) -> Path:
    """The decoder without a chat template."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_decoder, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def expected(folder: Path, text: str, new: int, ends: tuple[str, ...] = ("<|eos|>",)) -> str:
    """What plain Transformers answers, taking the most likely token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(
            **batch,
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=tokenizer.convert_tokens_to_ids(list(ends)),
            pad_token_id=0,
        )
    return tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_two_turns_equal_plain_transformers(
    tiny_decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = hftune.chat(
        tiny_decoder, lines=["red?\n", "\n", "blue?\n"], system="be", max_new_tokens=9,
        temperature=0,
    )  # fmt: skip
    assert [turn["role"] for turn in said] == ["system", *["user", "assistant"] * 2]
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    for index in (2, 4):
        prompt = render(tokenizer, said[:index], prompt=True)
        answer = expected(tiny_decoder, prompt, 9, ("<|eos|>", "<|end|>"))
        assert said[index]["content"] == answer.strip()
    printed = capsys.readouterr().out
    assert printed.split() == " ".join(said[i]["content"] for i in (2, 4)).split()


def test_the_end_of_a_turn_ends_an_answer(tiny_decoder: Path, plain_decoder: Path) -> None:
    """The template closes a turn with <|end|>, which is not the model's end of text."""
    for folder, ends in ((tiny_decoder, ["<|eos|>", "<|end|>"]), (plain_decoder, ["<|eos|>"])):
        model, tokenizer = module._load(folder)
        talk = Conversation(model, tokenizer, {})
        assert talk._ends() == tokenizer.convert_tokens_to_ids(ends)


def test_plain_text_is_continued_line_by_line(plain_decoder: Path) -> None:
    said = hftune.chat(plain_decoder, lines=["alpha", "beta"], max_new_tokens=6, temperature=0)
    assert said[1]["content"] == expected(plain_decoder, "alpha", 6).strip()
    assert said[3]["content"] == expected(plain_decoder, "beta", 6).strip()
    with pytest.raises(HftuneError, match="no chat template, so there is no system message"):
        hftune.chat(plain_decoder, lines=[], system="be kind")


def test_run_and_adapter_folder_answer_alike(make_recipe: Callable[..., Recipe]) -> None:
    run = hftune.train(
        make_recipe("text-generation", method="lora", training={"learning_rate": 0.05})
    )
    options: dict[str, Any] = {"lines": ["red?"], "max_new_tokens": 8, "temperature": 0}
    said = hftune.chat(run.path, **options)
    (run.model_path / "hftune.json").rename(run.path / "hftune.json.away")
    assert hftune.chat(run.model_path, **options) == said  # a plain PEFT adapter now
    base = run.recipe.model.path
    assert hftune.chat(base, **options) != said


def test_oldest_exchanges_are_forgotten(
    tiny_decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """256 positions, a byte is a token: 100 bytes and 40 more fit once, and not twice."""
    lines = ["a" * 100, "b" * 100, "c" * 100]
    said = hftune.chat(tiny_decoder, lines=lines, system="be", max_new_tokens=40, temperature=0)
    assert [turn["content"] for turn in said if turn["role"] == "user"][-1] == "c" * 100
    assert "a" * 100 not in [turn["content"] for turn in said]
    assert said[0] == {"role": "system", "content": "be"}
    assert "forgot the oldest 1 of the exchanges" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(HftuneError, match=r"the line makes 3\d\d tokens; the model takes 216"):
        hftune.chat(tiny_decoder, lines=["a" * 300], max_new_tokens=40)
    with pytest.raises(HftuneError, match="max_new_tokens: 256 leaves no room in 256 positions"):
        hftune.chat(tiny_decoder, lines=[], max_new_tokens=256)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT's, each time
def test_virtual_tokens_take_positions(make_recipe: Callable[..., Recipe]) -> None:
    method = {"name": "prompt_tuning", "num_virtual_tokens": 6}
    run = hftune.train(make_recipe("text-generation", method=method))
    with pytest.raises(HftuneError, match="leaves no room in 250 positions"):
        hftune.chat(run, lines=[], max_new_tokens=250)
    assert len(hftune.chat(run, lines=["a"], max_new_tokens=4, temperature=0)) == 2


def test_commands(tiny_decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["one", "/reset", "/system be kind", "two", "/nonsense", "/help", "/exit", "three"]
    said = hftune.chat(tiny_decoder, lines=lines, max_new_tokens=4, temperature=0)
    assert [turn["content"] for turn in said[:2]] == ["be kind", "two"]
    errors = capsys.readouterr().err
    assert "unknown command /nonsense" in errors
    assert "set the system message" in errors


def test_a_seed_repeats_and_sampling_is_checked(tiny_decoder: Path) -> None:
    def draw(**options: Any) -> str:
        said = hftune.chat(tiny_decoder, lines=["red?"], max_new_tokens=20, **options)
        return said[-1]["content"]

    assert draw(temperature=1.0, seed=1) == draw(temperature=1.0, seed=1)
    assert draw(temperature=1.0, seed=1) != draw(temperature=1.0, seed=2)
    assert draw(top_p=1e-9, seed=1) == draw(temperature=0)
    for wrong in (
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"temperature": 0, "top_p": 1},
    ):
        with pytest.raises(HftuneError, match=r"temperature|top_p"):
            draw(**wrong)


def test_what_writes_no_text_is_refused(
    make_recipe: Callable[..., Recipe], tiny_encoder: Path, tmp_path: Path
) -> None:
    run = hftune.train(make_recipe(method="lora"))
    with pytest.raises(HftuneError, match="text-classification writes no text") as caught:
        hftune.chat(run.path, lines=["hi"])
    assert "hftune predict" in str(caught.value.hint)
    (run.model_path / "hftune.json").unlink()
    with pytest.raises(HftuneError, match="an adapter for SEQ_CLS"):
        hftune.chat(run.model_path, lines=["hi"])
    with pytest.raises(HftuneError, match="BertModel is no language model; it lacks"):
        hftune.chat(tiny_encoder, lines=["hi"])
    with pytest.raises(HftuneError, match="no such folder"):
        hftune.chat(tmp_path / "nowhere", lines=["hi"])
    whole = hftune.train(make_recipe(training={"output_dir": str(tmp_path / "full")}))
    (whole.model_path / "hftune.json").unlink()
    with pytest.raises(HftuneError, match="BertForSequenceClassification writes no text"):
        hftune.chat(whole.model_path, lines=["hi"])


def test_an_interrupted_answer_is_kept_as_far_as_it_came(tiny_decoder: Path) -> None:
    model, tokenizer = module._load(tiny_decoder)
    talk = Conversation(model, tokenizer, {"do_sample": False}, max_new_tokens=100)
    pieces: list[str] = []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len("".join(pieces)) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask("red?", interrupt)
    kept = talk.messages[-1]
    assert kept["role"] == "assistant"
    assert "".join(pieces).strip().startswith(kept["content"][:3])
    again = talk.ask("blue?", lambda piece: None)  # the model still answers
    assert talk.messages[-1]["content"] == again.strip()


def test_a_pipe_gets_answers_and_nothing_else(
    tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("red?\nblue?\n"))
    said = hftune.chat(tiny_decoder, max_new_tokens=5, temperature=0)
    answers = [turn["content"] for turn in said if turn["role"] == "assistant"]
    assert capsys.readouterr().out.split() == " ".join(answers).split()


# A shell's background job ignores Ctrl-C and hands that down to its children.
LISTENS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import time
from hftune.cli import main
from hftune.commands import chat
plain = chat._print
chat._print = lambda text: (plain("@@" + text), time.sleep(0.1))  # lasts until the signal comes
main()
"""


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tiny_decoder: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENS, "chat", str(tiny_decoder), "--max-new-tokens", "200",
         "--temperature", "5"],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen = b""

    def read_until(mark: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 120
        while mark not in seen:
            ready, _, _ = select.select([leader], [], [], max(deadline - time.monotonic(), 0))
            assert ready, seen
            seen += os.read(leader, 4096)
        seen = seen.partition(mark)[2]

    try:
        read_until(b"> ")
        os.write(leader, b"red?\n")
        read_until(b"red?\r\n")
        read_until(b"@@")  # the answer has begun
        process.send_signal(signal.SIGINT)
        read_until(b"> ")
        time.sleep(1)  # between its prompt and its wait readline keeps a signal to itself
        process.send_signal(signal.SIGINT)  # nothing to stop: the program stays
        read_until(b"(Ctrl-D leaves)")
        read_until(b"> ")  # what is typed before the prompt is there may be thrown away
        os.write(leader, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
