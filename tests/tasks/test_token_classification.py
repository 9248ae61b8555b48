# SPDX-License-Identifier: Apache-2.0
"""Words, sub-words and tags: alignment, loss, metrics, saved models and the command line."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from seqeval.metrics import f1_score
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
)
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from typer.testing import CliRunner

import hftune
from hftune import HftuneError, Recipe
from hftune.cli import app
from hftune.losses.cross_entropy import CrossEntropy
from hftune.tasks.token_classification import TokenClassification
from hftune.tasks.words import first_tokens
from hftune.training.plan.prepare import prepare

COLUMNS = {"tokens": "tokens", "tags": "tags"}
COLOURS = ["red", "green", "blue"]


def sentences(number: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """A colour begins an entity, and the numbers after it are inside."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(number):
        tokens, tags = [], []
        for _ in range(drawn.randrange(1, 4)):
            tokens.append(drawn.choice(["alpha", "beta", "gamma", "delta"]))
            tags.append("O")
            inside = drawn.choices(["one", "two", "three"], k=drawn.randrange(3))
            tokens += [drawn.choice(COLOURS), *inside]
            tags += ["B-colour", *["I-colour"] * len(inside)]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


@pytest.fixture
def conll(tmp_path: Path) -> Path:
    rows = (zip(row["tokens"], row["tags"], strict=True) for row in sentences(60))
    text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in row) for row in rows)
    (tmp_path / "rows.conll").write_text(text + "\n")
    return tmp_path / "rows.conll"


@pytest.fixture
def recipe(tiny_encoder: Path, conll: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def build(**sections: Any) -> Recipe:
        training = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 6,
                    "learning_rate": 1e-2, **sections.pop("training", {})}  # fmt: skip
        whole = {"model": str(tiny_encoder), "data": str(conll), "method": "full", **sections}
        return Recipe(task="token-classification", **whole, training=training)

    return build


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    """WordPiece that cuts after two letters, and drops zero-width spaces."""
    letters = ["new", "yo", "##rk", "is", "bi", "##g", "."]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(
        models.WordPiece({t: i for i, t in enumerate([*special, *letters])}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE without a space before the first word, as GPT-2's and Llama's are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", *alphabet, "Ġi", "Ġis"])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[("Ġ", "i"), ("Ġi", "s")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def learned(rows: list[dict[str, Any]], features: Features | None = None) -> TokenClassification:
    task = TokenClassification()
    task.fit_labels(task.select(Dataset.from_list(rows, features=features), COLUMNS), None)
    return task


def encoded(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None) -> Any:
    task = learned(rows)
    return task.preprocess(task.select(Dataset.from_list(rows), COLUMNS), tokenizer, max_length)


ROW = {"tokens": ["New", "York", "is", "big."], "tags": ["B-city", "I-city", "O", "O"]}


def test_alignment_by_hand(pieces: Any) -> None:
    row = encoded([ROW], pieces).dataset[0]
    assert pieces.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]", "new", "yo", "##rk", "is", "bi", "##g", ".", "[SEP]",
    ]  # fmt: skip
    assert row["labels"] == [-100, 1, 2, -100, 0, 0, -100, -100, -100]


def test_alignment_is_that_of_word_ids(pieces: Any) -> None:
    drawn = random.Random(0)
    words = ["new", "york", "is", "big.", "York.York", "x", ".", "IS"]
    rows = [{"tokens": drawn.choices(words, k=drawn.randrange(1, 9))} for _ in range(200)]
    for row in rows:
        row["tags"] = drawn.choices(["O", "B-a", "I-a"], k=len(row["tokens"]))
    task = learned(rows)
    ours = task.preprocess(task.select(Dataset.from_list(rows), COLUMNS), pieces, 9)
    for row, found in zip(rows, ours.dataset, strict=True):
        theirs = pieces(row["tokens"], is_split_into_words=True, truncation=True, max_length=9)
        assert found["input_ids"] == theirs["input_ids"]
        ids = theirs.word_ids()
        for position, word in enumerate(ids):
            begins = word is not None and word not in ids[:position]
            expected = task.label_names.index(row["tags"][word]) if begins else -100
            assert found["labels"][position] == expected


def test_words_of_a_byte_level_tokenizer_keep_their_space(byte_level: Any) -> None:
    row = encoded([{"tokens": ["it", "is"], "tags": ["V", "N"]}], byte_level).dataset[0]
    assert byte_level.convert_ids_to_tokens(row["input_ids"]) == ["i", "t", "Ġis"]
    assert row["labels"] == [1, -100, 0]


def test_words_without_a_token_have_no_label(
    pieces: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"tokens": ["new", "\u200b", "", "is"], "tags": ["A", "B-x", "B-x", "C"]}
    found = encoded([row], pieces)
    assert [label for label in found.dataset[0]["labels"] if label != -100] == [0, 2]
    assert "2 of 4 words have no token" in capsys.readouterr().err.replace("\n", " ")


def test_words_beyond_the_limit_are_counted(
    pieces: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = encoded([ROW], pieces, 5)
    assert found.num_truncated == 1
    assert found.sizes == [9]
    assert found.dataset[0]["labels"] == [-100, 1, 2, -100, -100]
    text = capsys.readouterr().err.replace("\n", " ")
    assert "2 of 4 words have no token within 5 tokens" in text


def test_a_token_over_two_words_belongs_to_the_first() -> None:
    assert first_tokens([(0, 0), (0, 5), (6, 7), (0, 0)], [(0, 2), (3, 5), (6, 7)]) == [1, None, 2]


def test_rows_without_words_are_dropped_in_training(pieces: Any) -> None:
    found = encoded([ROW, {"tokens": [], "tags": []}], pieces)
    assert (len(found.dataset), found.num_without_labels) == (1, 1)


def test_labels_stand_kind_by_kind_with_every_prefix() -> None:
    rows = [{"tokens": ["a", "b", "c"], "tags": ["I-z", "B-z", "B-a"]}, ROW]
    names = learned(rows).label_names
    assert names == ["O", "B-a", "I-a", "B-city", "I-city", "B-z", "I-z"]
    assert learned([{"tokens": ["a", "b"], "tags": [10, 9]}]).label_names == ["9", "10"]


def test_class_labels_keep_their_names() -> None:
    names = ["O", "B-z", "I-z"]
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
    rows = [{"tokens": ["a", "b"], "tags": [1, 0]}]
    task = TokenClassification()
    selected = task.select(Dataset.from_list(rows, features=features), COLUMNS)
    assert selected["tags"][0] == ["B-z", "O"]
    task.fit_labels(selected, None)
    assert task.label_names == names


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "row 2 has 1 tags for 2 words"),
        ({"tokens": None, "tags": ["O"]}, "row 2 is no list of words but None"),
        ({"tokens": ["a"], "tags": None}, "row 2 is no list of tags but None"),
        ({"tokens": ["a"], "tags": [None]}, "row 2 has None among tags"),
    ],
)
def test_rows_that_do_not_fit(row: dict[str, Any], message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        TokenClassification().select(Dataset.from_list([ROW, row]), COLUMNS)


def test_columns_that_do_not_fit() -> None:
    with pytest.raises(HftuneError, match="row 1 is no list of tags but 'O O'"):
        learned([{"tokens": ["a", "b"], "tags": "O O"}])
    with pytest.raises(HftuneError, match="all 1 rows are empty"):
        learned([{"tokens": [], "tags": []}])
    with pytest.raises(HftuneError, match="nothing to tell apart: the only tag is O"):
        learned([{"tokens": ["a"], "tags": ["O"]}])
    task = learned([ROW])
    other = task.select(Dataset.from_list([{"tokens": ["a"], "tags": ["B-river"]}]), COLUMNS)
    with pytest.raises(HftuneError, match=r"validation rows have tags .* know: B-river"):
        task.check(other, "validation")


def test_entities_that_begin_without_b_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    learned([ROW, {"tokens": ["a", "b"], "tags": ["I-city", "O"]}])
    assert "tags: IOB2; 1 entity begins without B" in capsys.readouterr().err.replace("\n", " ")


def test_equal_sentences_and_groups_stay_together() -> None:
    rows = [{**row, "group": str(index // 2)} for index, row in enumerate([ROW] * 3)]
    other = {"tokens": ["x"], "tags": ["O"], "group": "z"}
    task = TokenClassification()
    keys, strata = task.split_keys(
        task.select(Dataset.from_list([*rows, other]), {**COLUMNS, "group": "group"})
    )
    assert list(keys) == [0, 0, 0, 1]
    assert strata == ["city"] * 3 + ["O"]


def test_batches_are_those_of_the_library(tiny_encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    rows = [dict(row) for row in encoded(sentences(8), tokenizer).dataset]
    ours = TokenClassification().collator(tokenizer)([dict(row) for row in rows])
    theirs = DataCollatorForTokenClassification(tokenizer)(rows)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def batch(recipe: Callable[..., Recipe]) -> tuple[TokenClassification, Any, dict[str, Tensor]]:
    plan = prepare(recipe())
    model = AutoModelForTokenClassification.from_pretrained(
        plan.pretrained.path, config=plan.pretrained.config
    )
    rows = [plan.splits.train.dataset[index] for index in range(10)]
    return (
        plan.objective.task,
        model.eval(),
        dict(plan.objective.task.collator(plan.pretrained.processor)(rows)),
    )  # type: ignore


def test_loss_is_the_models_own(batch: Any) -> None:
    _, model, inputs = batch
    loss = CrossEntropy()
    ours = loss.total(model, inputs)[0] / loss.denominator(inputs)
    assert ours.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-6)


def test_metrics_do_not_depend_on_batches(batch: Any) -> None:
    """Ragged batches are padded with -100, as the Trainer and ``hftune evaluate`` do."""
    task, model, inputs = batch
    with torch.no_grad():
        whole = nested_numpify(task.evaluation_step(model, inputs))
        kept = None
        for start, stop in ((0, 1), (1, 4), (4, 10)):
            part = {key: value[start:stop] for key, value in inputs.items()}
            length = int(part["attention_mask"].sum(1).max())
            part = {key: value[:, :length] for key, value in part.items()}
            step = nested_numpify(task.evaluation_step(model, part))
            kept = step if kept is None else nested_concat(kept, step)
        logits = model(**inputs).logits
    metrics = task.metrics(whole)
    assert task.metrics(kept) == pytest.approx(metrics, abs=1e-6)
    assert metrics["loss"] == pytest.approx(model(**inputs).loss.item(), rel=1e-6)
    here = inputs["labels"] != -100
    assert metrics["accuracy"] == pytest.approx(
        (logits.argmax(-1) == inputs["labels"])[here].float().mean().item()
    )
    predicted, true = task.predictions_and_references(whole)
    assert metrics["f1"] == pytest.approx(f1_score(true, predicted))
    assert [len(row) for row in true] == here.sum(1).tolist()
    assert sum(kind["support"] for kind in task.per_class(whole).values()) == sum(
        tag[0] == "B" for row in true for tag in row
    )


def test_a_tiny_model_learns_the_rule(recipe: Callable[..., Recipe]) -> None:
    run = hftune.train(recipe(training={"max_steps": 60}))
    assert run.metrics["eval_f1"] > 0.95
    assert run.metrics["eval_per_class"]["colour"]["f1"] == run.metrics["eval_f1"]


@pytest.mark.parametrize("method", ["full", "head_only", "lora", "prompt_tuning", "prefix_tuning"])
def test_a_saved_model_gives_the_same_again(
    method: str, recipe: Callable[..., Recipe], conll: Path
) -> None:
    run = hftune.train(recipe(method=method, data={"path": str(conll), "validation": str(conll)}))
    again = hftune.load(run.path)
    text = run.tokenizer(["alpha red one", "blue"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again.model(**text).logits, run.model(**text).logits)
    metrics = hftune.evaluate(again, str(conll), batch_size=7)
    for name in ("loss", "accuracy", "f1", "f1_macro"):
        assert metrics[f"eval_{name}"] == pytest.approx(run.metrics[f"eval_{name}"], abs=1e-6)


@pytest.mark.parametrize("method", ["full", "prompt_tuning"])
def test_predictions_are_the_models(
    method: str, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = hftune.train(recipe(method=method, training={"max_steps": 30}))
    text = "alpha  red one two beta blue"
    rows = tmp_path / "new.jsonl"
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("", text, "gamma")))
    answers = hftune.predict(run, str(rows), batch_size=2)
    tokens = run.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        shares = run.model.eval()(**tokens).logits[0, -8:].softmax(-1)[1:-1]
    names = np.array(run.task.label_names, dtype=object)
    assert answers[1]["prediction"] == names[shares.argmax(-1).numpy()].tolist()
    assert answers[1]["scores"] == pytest.approx(shares.max(-1).values.tolist(), abs=1e-5)
    assert answers[0]["prediction"] == answers[0]["entities"] == []
    for entity in answers[1]["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        words = text.split()[entity["start_word"] : entity["end_word"]]
        assert entity["text"].split() == words
        assert entity["score"] == pytest.approx(
            np.mean(answers[1]["scores"][entity["start_word"] : entity["end_word"]])
        )
    if method == "full":
        assert [e["text"] for e in answers[1]["entities"]] == ["red one two", "blue"]


def test_words_that_were_cut_have_no_prediction(recipe: Callable[..., Recipe]) -> None:
    run = hftune.train(recipe(data={"path": recipe().data.path, "max_length": 5}))
    rows = Dataset.from_dict({"tokens": [["alpha", "red", "one", "two", "red"]]})
    answer = hftune.predict(run, rows)[0]
    assert answer["prediction"][3:] == answer["scores"][3:] == [None, None]
    assert None not in answer["prediction"][:3]


def test_plain_tags(recipe: Callable[..., Recipe]) -> None:
    rows = Dataset.from_list(
        [{"words": row["tokens"], "pos_tags": ["C" if w in COLOURS else "N" for w in row["tokens"]]}
         for row in sentences(60)]
    )  # fmt: skip
    run = hftune.train(recipe(data={}, training={"max_steps": 60}), train_dataset=rows)
    assert run.metrics["eval_accuracy"] == run.metrics["eval_f1_macro"] == 1
    assert set(run.metrics["eval_per_class"]) == {"C", "N"}
    assert "entities" not in hftune.predict(run, rows.select([0])).column_names


def test_class_weights_balance_tags(recipe: Callable[..., Recipe]) -> None:
    plan = prepare(recipe(loss={"name": "cross_entropy", "class_weights": "balanced"}))
    labels = [i for row in plan.splits.train.dataset["labels"] for i in row if i != -100]
    counts = np.bincount(labels)
    expected = len(labels) / (len(counts) * counts)
    assert isinstance(plan.objective.loss, CrossEntropy)
    assert plan.objective.loss.weight is not None
    assert plan.objective.loss.weight.numpy() == pytest.approx(expected)


def test_command_line_round_trip(
    recipe: Callable[..., Recipe], conll: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe().to_yaml(None))
    runner, folder = CliRunner(), str(tmp_path / "run")
    output = str(tmp_path / "out.jsonl")
    for words in (
        ["check", str(path)],
        ["train", str(path), f"training.output_dir={folder}"],
        ["evaluate", folder, str(conll)],
        ["predict", folder, str(conll), output],
    ):
        done = runner.invoke(app, words)
        assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in Path(output).read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [row["tokens"] for row in sentences(60)]
    assert all(len(line["prediction"]) == len(line["tokens"]) for line in lines)
    assert "AutoModelForTokenClassification" in (tmp_path / "run/model/README.md").read_text()
