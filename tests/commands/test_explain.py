# SPDX-License-Identifier: Apache-2.0
"""``hftune explain`` on finished runs: files, numbers, predictions, options and mistakes."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hftune
from hftune import HftuneError, Recipe, cli

pytestmark = pytest.mark.draws

FILES = ["attention.html", "attention.json", "attention.png", "attention.svg"]
QUICK = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}


def train(folder: Path, task: str, model: Path, data: Path) -> Path:
    training = {**QUICK, "output_dir": str(folder / "run"), "use_cpu": True}
    sections = {"model": str(model), "data": str(data), "method": "lora", "training": training}
    return hftune.train(Recipe(task=task, **sections)).path


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: Path,
    tiny_decoder: Path,
    labelled_file: Path,
    chat_file: Path,
    tagged_file: Path,
    tiny_seq2seq: Path,
    seq2seq_file: Path,
) -> dict[str, Path]:
    """One run of each task, trained for a step."""
    parts = {
        "classifier": ("text-classification", tiny_encoder, labelled_file),
        "chat": ("text-generation", tiny_decoder, chat_file),
        "tagger": ("token-classification", tiny_encoder, tagged_file),
        "seq2seq": ("text2text-generation", tiny_seq2seq, seq2seq_file),
    }
    return {name: train(tmp_path_factory.mktemp(name), *part) for name, part in parts.items()}


@pytest.fixture
def classifier(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["classifier"], tmp_path / "classifier"))


@pytest.fixture
def chat(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["chat"], tmp_path / "chat"))


@pytest.fixture
def tagger(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["tagger"], tmp_path / "tagger"))


@pytest.fixture
def seq2seq(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["seq2seq"], tmp_path / "seq2seq"))


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "attention.json").read_text("utf-8"))
    return found


def test_numbers_are_those_of_an_eager_model(classifier: Path, tmp_path: Path) -> None:
    found = hftune.explain(classifier, "alpha red", "one two")
    assert found.folder == classifier / "explain" / "alpha-red"
    assert sorted(path.name for path in found.folder.iterdir()) == FILES
    record = read(found.folder)
    (one,) = record["maps"]
    weights = np.array(one["weights"])
    assert weights.shape == (2, 2, 7, 7)
    np.testing.assert_allclose(weights, found.maps[0].weights, atol=1e-8)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert (one["kind"], one["causal"], one["layers"], one["heads"]) == ("self", False, [0, 1], 2)
    assert [token["segment"] for token in one["keys"]] == ["text"] * 4 + ["text_pair"] * 3
    assert [token["special"] for token in one["queries"]] == [1, 0, 0, 1, 0, 0, 1]

    run = hftune.load(classifier)
    before = run.model.config._attn_implementation
    run.model.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = run.tokenizer("alpha red", "one two", return_tensors="pt")
        outputs = run.model(**inputs, output_attentions=True)
    np.testing.assert_allclose(weights, torch.cat(list(outputs.attentions)).numpy(), atol=1e-6)
    run.model.set_attn_implementation(before)

    rows = tmp_path / "rows.csv"
    rows.write_text("text,text_pair\nalpha red,one two\n")
    (expected,) = hftune.predict(run, str(rows))
    names = {score["name"]: score["probability"] for score in record["prediction"]["scores"]}
    assert names == pytest.approx(expected["scores"], abs=1e-5)
    assert record["prediction"]["scores"][0]["name"] == expected["prediction"]


def test_a_chat_model_gets_a_users_turn(chat: Path) -> None:
    run = hftune.load(chat)
    found = hftune.explain(run, "alpha?", generate=5)
    (one,) = read(found.folder)["maps"]
    text = "".join(token["text"] for token in one["keys"] if token["segment"] != "generated")
    prompt = run.tokenizer.apply_chat_template(
        [{"role": "user", "content": "alpha?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == prompt
    weights = np.array(one["weights"])
    assert one["causal"]
    above = np.triu_indices(weights.shape[-1], k=1)
    assert not weights[:, :, above[0], above[1]].any()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)

    ids = torch.tensor([[token["id"] for token in one["keys"]]])
    with torch.no_grad():
        best = run.model(input_ids=ids).logits[0].argmax(-1)
    new = [i for i, token in enumerate(one["keys"]) if token["segment"] == "generated"]
    assert 1 <= len(new) <= 5
    assert new == list(range(ids.shape[1] - len(new), ids.shape[1]))
    for position in new:
        assert ids[0, position] == best[position - 1]
    assert found.prediction["kind"] == "next_token"
    following = run.tokenizer.decode([int(best[-1])])
    name = found.prediction["scores"][0]["name"]
    assert name == following or "\N{REPLACEMENT CHARACTER}" in following

    raw = hftune.explain(run, "alpha?", raw=True)
    (one,) = read(raw.folder)["maps"]
    assert "".join(token["text"] for token in one["keys"]) == "alpha?"
    assert raw.folder == chat / "explain" / "alpha-2"


def test_a_taggers_words_carry_the_tags_that_predict_gives(
    tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = hftune.load(tagger)
    text = "alpha  red one gamma"
    record = read(hftune.explain(run, text).folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": text}) + "\n")
    (expected,) = hftune.predict(run, str(rows))
    told = record["prediction"]
    assert told["kind"] == "tags"
    assert [one["name"] for one in told["scores"]] == expected["prediction"]
    assert [one["probability"] for one in told["scores"]] == pytest.approx(expected["scores"])
    assert told["entities"] == expected["entities"]
    assert [one["word"] for one in told["scores"]] == text.split()
    (one,) = record["maps"]
    assert [token["text"].strip() for token in one["keys"]] == ["[CLS]", *text.split(), "[SEP]"]
    assert [token["output"] for token in one["keys"]] == [None, *expected["prediction"], None]
    weights = np.array(one["weights"])
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    pairs = zip(text.split(), expected["prediction"], strict=True)
    assert "/".join(next(pairs)) in capsys.readouterr().err
    # A word beyond the limit has no token to carry its tag.
    cut = hftune.explain(run, text, max_length=4).prediction["scores"]
    assert [one["name"] is None for one in cut] == [False, False, True, True]


def test_an_encoder_decoder_reads_the_text_and_its_own_answer(
    seq2seq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against an eager pass over the ids that generate gave, and its logits."""
    run = hftune.load(seq2seq)
    found = hftune.explain(run, "alpha red one two", generate=5)
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "attention-cross.png", "attention-cross.svg", "attention-decoder.png",
        "attention-decoder.svg", "attention-encoder.png", "attention-encoder.svg",
        "attention.html", "attention.json",
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert str(found.folder / "attention-cross.png") in said
    assert re.search(r"look first at cross attention, layer \d", said)
    record = read(found.folder)
    maps = {one["kind"]: one for one in record["maps"]}
    assert list(maps) == ["encoder", "decoder", "cross"]
    source = run.tokenizer("alpha red one two", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        written = run.model.generate(**source, max_new_tokens=5, do_sample=False, num_beams=1)
        run.model.set_attn_implementation("eager")
        outputs = run.model(**source, decoder_input_ids=written[:, :-1], output_attentions=True)
    assert record["prediction"]["scores"][0]["name"] == run.tokenizer.decode(
        written[0], skip_special_tokens=True
    )
    for kind, one in maps.items():
        weights = np.array(one["weights"])
        layers = torch.cat(list(outputs[f"{kind}_attentions"])).numpy()
        np.testing.assert_allclose(weights, layers, atol=1e-6)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert [maps[kind]["causal"] for kind in maps] == [False, True, False]
    ids = {kind: [token["id"] for token in one["keys"]] for kind, one in maps.items()}
    assert ids["encoder"] == ids["cross"] == source["input_ids"][0].tolist()
    assert ids["decoder"] == written[0, :-1].tolist()
    # Where a token is read, the next one is written: the most likely one by the same pass.
    best = outputs.logits[0].argmax(-1).tolist()
    for one in (maps["decoder"], maps["cross"]):
        outs = [token["output"].strip() for token in one["queries"]]
        assert outs == [run.tokenizer.decode([token]).strip() for token in best]
    assert {token["output"] for token in maps["cross"]["keys"]} == {None}


def test_an_encoder_decoder_writes_what_predict_writes(
    make_recipe: Callable[..., Recipe], tmp_path: Path, seq2seq_file: Path
) -> None:
    """With the prefix, the beams and the length of the run."""
    run = hftune.train(
        make_recipe(
            "text2text-generation",
            {**QUICK, "learning_rate": 0.01},
            data={"path": str(seq2seq_file), "source_prefix": "blue "},
            evaluation={"generation": {"num_beams": 3, "max_new_tokens": 7}},
        )
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "alpha red"}) + "\n")
    (expected,) = hftune.predict(run, str(rows), max_new_tokens=7)
    found = hftune.explain(run, "alpha red", hide_special=True)
    assert found.prediction["scores"][0]["name"] == expected["prediction"]
    assert [token.text.strip() for token in found.maps[0].keys] == ["blue", "alpha", "red", "</s>"]
    assert 1 <= len(found.maps[1].queries) <= 7


@pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
@pytest.mark.parametrize(
    ("method", "places"),
    [
        ("prompt_tuning", {"encoder": (4, 4), "decoder": (0, 0), "cross": (0, 4)}),
        ("p_tuning", {"encoder": (4, 4), "decoder": (0, 0), "cross": (0, 4)}),
        ("prefix_tuning", {"encoder": (0, 0), "decoder": (0, 4), "cross": (0, 0)}),
    ],
)
def test_virtual_tokens_of_an_encoder_decoder(
    method: str, places: dict[str, tuple[int, int]], make_recipe: Callable[..., Recipe]
) -> None:
    options = {"name": method, "num_virtual_tokens": 4}
    run = hftune.train(make_recipe("text2text-generation", QUICK, method=options))
    found = hftune.explain(run.path, "alpha red one", generate=3)
    for one in found.maps:
        virtual = [
            [token.segment for token in tokens].count("virtual")
            for tokens in (one.queries, one.keys)
        ]
        assert tuple(virtual) == places[one.kind]
        assert one.weights.shape[-2:] == (len(one.queries), len(one.keys))
        np.testing.assert_allclose(one.weights.sum(-1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
@pytest.mark.parametrize(
    ("task", "method", "rows", "virtual"),
    [
        ("text-generation", "prompt_tuning", 4, 4),
        ("text-generation", "p_tuning", 4, 4),
        ("text-generation", "prefix_tuning", 0, 4),
        ("text-classification", "prompt_tuning", 4, 4),
        ("text-classification", "prefix_tuning", 0, 4),
    ],
)
def test_virtual_tokens_of_prompt_methods(
    task: str, method: str, rows: int, virtual: int, make_recipe: Callable[..., Recipe]
) -> None:
    options = {"name": method, "num_virtual_tokens": virtual}
    run = hftune.train(make_recipe(task, QUICK, method=options))
    generate = 3 if task == "text-generation" else 0
    found = hftune.explain(run.path, "alpha red one", generate=generate, hide_special=True)
    (one,) = read(found.folder)["maps"]
    assert [token["text"] for token in one["keys"][:virtual]] == [
        f"<virtual {i}>" for i in range(virtual)
    ]
    segments = [token["segment"] for token in one["queries"]]
    assert segments.count("virtual") == rows
    assert segments.count("generated") == min(generate, segments.count("generated"))
    weights = np.array(one["weights"])
    assert weights.shape[-2:] == (len(one["queries"]), len(one["keys"]))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights[..., :virtual].max() > 0


def test_long_texts_are_cut_with_a_warning(
    classifier: Path, chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = hftune.explain(classifier, "red " * 100)  # the tiny encoder has 64 positions
    assert found.maps[0].weights.shape[-1] == 64
    assert "the last 38 tokens were cut: 64 are read at most" in capsys.readouterr().err
    found = hftune.explain(chat, "a" * 300, generate=6)  # the tiny decoder has 256
    assert found.maps[0].weights.shape[-1] <= 256
    assert "of the prompt are read at most" in capsys.readouterr().err
    found = hftune.explain(chat, "a" * 300, max_length=20)
    assert found.maps[0].weights.shape[-1] == 20
    assert found.maps[0].keys[-1].text == "<|assistant|>"  # what stands last is kept


def test_hidden_special_tokens_are_hidden_in_pictures_and_kept_in_numbers(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(
        "hftune.commands.explain.draw_attention_grid",
        lambda weights, *rest: drawn.append(weights) or [],
    )
    found = hftune.explain(classifier, "alpha red one", output=tmp_path, hide_special=True)
    assert drawn[0].shape == (2, 2, 3, 3)
    record = read(tmp_path)
    assert record["hide_special"] is True
    assert np.array(record["maps"][0]["weights"]).shape == (2, 2, 5, 5)
    np.testing.assert_array_equal(drawn[0], found.maps[0].weights[:, :, 1:4, 1:4])


def test_the_model_folder_stays_clean(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted((classifier / "model").iterdir())
    found = hftune.explain(classifier / "model", "\N{SNOWMAN}")
    assert found.folder.resolve() == (classifier / "explain" / "text").resolve()
    assert sorted((classifier / "model").iterdir()) == before
    alone = tmp_path / "alone"
    (classifier / "model").rename(alone)
    monkeypatch.chdir(tmp_path)
    assert hftune.explain(alone, "red").folder == Path("explain/red")


@pytest.mark.parametrize(
    ("which", "arguments", "says"),
    [
        ("classifier", ["--text", " "], "--text: the text is empty"),
        ("classifier", ["--text", "a", "--generate", "2"], "--generate: a classifier generates"),
        ("classifier", ["--text", "a", "--raw"], "--raw: a classifier reads its text as it is"),
        ("chat", ["--text", "a", "--text-pair", "b"], "--text-pair: a language model reads one"),
        ("chat", ["--text", "a", "--generate", "512"], "--generate: 512 tokens leave no room"),
        ("chat", ["--text", "a", "--generate", "256"], "--generate: 256 tokens leave no room"),
        ("classifier", ["--text", "a", "--output", "{file}"], "is a file; a folder is needed"),
        ("tagger", ["--text", "a", "--text-pair", "b"], "--text-pair: a tagger reads one text"),
        ("tagger", ["--text", "a", "--generate", "2"], "--generate: a tagger generates nothing"),
        ("seq2seq", ["--text", "a", "--raw"], "--raw: an encoder-decoder reads its text as it is"),
        ("seq2seq", ["--text", "a", "--generate", "0"], "reads what it writes; give 1 or more"),
        ("seq2seq", ["--text", "a", "--text-pair", "b"], "an encoder-decoder reads one text"),
    ],
)
def test_mistakes_are_named(
    which: str,
    arguments: list[str],
    says: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = request.getfixturevalue(which)
    (tmp_path / "file").touch()
    given = [item.format(file=tmp_path / "file") for item in arguments]
    monkeypatch.setattr(sys, "argv", ["hftune", "explain", str(run), *given])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (run / "explain").exists()


def test_the_command_prints_where_to_look(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["hftune", "explain", str(classifier), "--text", "alpha red one", "--hide-special"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    said = capsys.readouterr().err
    folder = classifier / "explain" / "alpha-red-one"
    assert [str(folder / name) in said for name in FILES] == [True] * 4
    assert re.search(r"look first at layer \d, head \d", said)
    assert "not an explanation" in said


def test_other_tasks_are_refused(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    run = hftune.load(classifier)
    run.metadata = dataclasses.replace(run.metadata, task="fill-mask")
    with pytest.raises(HftuneError, match="not for fill-mask"):
        hftune.explain(run, "a")
