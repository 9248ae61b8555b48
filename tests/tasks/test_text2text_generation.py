# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoders: labels, losses, written texts and what is refused before any weight."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import hftune
from hftune import HftuneError, Recipe, RecipeError
from hftune.losses.loss import forward
from hftune.tasks.task import PredictArguments, blank_row
from hftune.tasks.text2text_generation import Text2TextGeneration
from hftune.tasks.text_generation import TextGeneration
from hftune.training.plan.prepare import prepare
from hftune.training.plan.remarks import remarks

TASK = "text2text-generation"
KINDS = ("t5", "bart", "marian")
ROWS = [
    {"text": "alpha beta gamma", "target": "beta gamma"},
    {"text": "one two three four five", "target": "two three four five"},
    {"text": "red", "target": ""},
]


@pytest.fixture(scope="module", params=KINDS)
def parts(request: Any, seq2seq_models: dict[str, Path]) -> tuple[Any, Any, Any]:
    """A task with a model of each kind and its tokenizer."""
    folder = seq2seq_models[request.param]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    return Text2TextGeneration(), model, AutoTokenizer.from_pretrained(folder)


def batch_of(task: Any, model: Any, tokenizer: Any, rows: list[dict[str, str]] = ROWS) -> Any:
    encoded = task.preprocess(Dataset.from_list(rows), tokenizer, None).dataset
    return task.collator(tokenizer, model)(list(encoded))


def test_loss_is_the_models_own(parts: tuple[Any, Any, Any]) -> None:
    task, model, _ = parts
    task.resolve_length(model.config)
    batch = batch_of(*parts)
    with torch.no_grad():
        kept = task.evaluation_step(model, batch)
        own = model(**{k: v for k, v in batch.items() if k != "decoder_input_ids"}).loss
    assert kept["loss"].sum() / kept["tokens"].sum() == pytest.approx(own.item(), abs=1e-5)
    assert kept["tokens"].tolist() == [3, 5, 1]  # EOS of an empty target counts


def test_padding_changes_no_row(parts: tuple[Any, Any, Any]) -> None:
    task, model, _ = parts
    task.generation = None
    with torch.no_grad():
        together = task.evaluation_step(model, batch_of(*parts))["loss"]
        alone = [task.evaluation_step(model, batch_of(*parts, [row]))["loss"] for row in ROWS]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_blank_rows_count_nothing(parts: tuple[Any, Any, Any]) -> None:
    task, model, tokenizer = parts
    task.generation = None
    encoded = task.preprocess(Dataset.from_list(ROWS), tokenizer, None).dataset
    batch = task.collator(tokenizer, model)([blank_row(row) for row in encoded])
    with torch.no_grad():
        kept = task.evaluation_step(model, batch)
        assert forward(model, batch).logits.isfinite().all()
    assert not kept["loss"].any()
    assert not kept["tokens"].any()


@pytest.mark.parametrize("beams", [1, 3])
def test_written_texts_are_generates_own(parts: tuple[Any, Any, Any], beams: int) -> None:
    """A padded batch against model.generate on each row alone; Task.predict says the same."""
    _, model, tokenizer = parts
    task = Text2TextGeneration(generation={"num_beams": beams, "max_new_tokens": 9})
    with torch.no_grad():
        kept = {k: v.numpy() for k, v in task.evaluation_step(model, batch_of(task, model,
                tokenizer)).items()}  # fmt: skip
        expected = []
        for row in ROWS:
            ids = model.generate(
                **tokenizer([row["text"]], return_tensors="pt", return_token_type_ids=False),
                num_beams=beams,
                max_new_tokens=9,
                do_sample=False,
            )
            expected.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    predictions, references = task.predictions_and_references(kept)
    assert predictions == expected
    assert references == [row["target"] for row in ROWS]
    how = PredictArguments(batch_size=2, max_new_tokens=9)
    answers = task.predict(model, tokenizer, Dataset.from_list(ROWS), how)
    assert [answer["prediction"] for answer in answers] == expected
    assert task.samples(kept, 1)[0] == {
        "source": "alpha beta gamma", "reference": "beta gamma", "prediction": expected[0]
    }  # fmt: skip


def test_prefix_and_limits(tiny_seq2seq: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_seq2seq)
    task = Text2TextGeneration(source_prefix="red ", max_target_length=3)
    encoded = task.preprocess(Dataset.from_list(ROWS), tokenizer, 5)
    assert encoded.sizes == [5, 7, 3]
    assert encoded.num_truncated == 1
    assert tokenizer.decode(encoded.dataset[0]["input_ids"]) == "red alpha beta gamma </s>"
    ends = [row["labels"][-1] == tokenizer.eos_token_id for row in encoded.dataset]
    assert ends == [True, False, True]  # a cut target does not teach where to stop
    assert "targets cut at 3 tokens: 1 of 3" in capsys.readouterr().err
    without = Dataset.from_list([{"text": "red"}])
    assert "labels" not in task.preprocess(without, tokenizer, None).dataset.column_names


def test_unknown_characters_are_said(
    tiny_seq2seq: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_seq2seq)
    rows = Dataset.from_list([{"text": "red", "target": "quux"}])
    task = Text2TextGeneration()
    labels = np.array(task.preprocess(rows, tokenizer, None).dataset["labels"][:])
    kept = {"generated": labels, "references": labels}
    assert task.predictions_and_references(kept) == (
        [""],
        ["<unk>"],
    )  # what cannot be written is no exact match
    assert (
        "does not know, so that the model cannot write them: in 1 of 1 targets"
        in capsys.readouterr().err
    )


def test_it_learns_and_everything_agrees(
    make_recipe: Callable[..., Recipe], seq2seq_file: Path, seq2seq_models: dict[str, Path]
) -> None:
    """Sixty rows learnt by heart: evaluation, samples, evaluate and predict say the same."""
    model = seq2seq_models["bart"]
    run = hftune.train(
        make_recipe(
            TASK,
            {
                "max_steps": 150,
                "learning_rate": 3e-3,
                "per_device_train_batch_size": 16,
                "eval_strategy": "steps",
                "eval_steps": 75,
                "metric_for_best_model": "bleu",
                "greater_is_better": True,
            },
            model={"path": str(model)},
            data={"path": str(seq2seq_file), "validation": str(seq2seq_file)},
            evaluation={"generation": {"max_new_tokens": 12}},
        )
    )
    assert run.metrics["eval_exact_match"] == 1
    assert run.metrics["eval_bleu"] == pytest.approx(100)
    lines = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[::10]] == [75, 150, 150]
    assert [line["final"] for line in lines[::10]] == [False, False, True]
    assert all(line["prediction"] == line["reference"] for line in lines[-10:])
    again = hftune.evaluate(run.path, str(seq2seq_file), batch_size=7)
    for key in ("eval_loss", "eval_bleu", "eval_rougeL", "eval_exact_match"):
        assert again[key] == pytest.approx(run.metrics[key], abs=1e-5)
    rows = hftune.predict(run.path, str(seq2seq_file))
    assert rows["prediction"][:] == rows["target"][:]


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning", "prefix_tuning"])
def test_adapter_saved_and_loaded_is_equal(
    kind: str, method: str, make_recipe: Callable[..., Recipe], seq2seq_models: dict[str, Path]
) -> None:
    model = seq2seq_models[kind]
    run = hftune.train(
        make_recipe(
            TASK,
            {"max_steps": 2, "learning_rate": 0.1},
            model={"path": str(model)},
            method={"name": method},
            evaluation={"generation": False},
        )
    )
    loaded = hftune.load(run.path)
    logits = []
    for tuned in (run.model, loaded.model):
        batch = batch_of(run.task, tuned, run.tokenizer)
        with torch.no_grad():
            logits.append(forward(tuned, batch).logits)
    torch.testing.assert_close(*logits)
    base = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    with torch.no_grad():
        assert (forward(base, batch).logits - logits[0]).abs().max() > 1e-3
    assert "eval_bleu" not in run.metrics
    assert not (run.path / "samples.jsonl").exists()
    assert "AutoPeftModelForSeq2SeqLM" in (run.path / "model" / "README.md").read_text()


def test_a_model_of_the_other_kind_is_refused(
    make_recipe: Callable[..., Recipe], tiny_decoder: Path, tiny_seq2seq: Path
) -> None:
    with pytest.raises(HftuneError, match="no encoder with a decoder") as refused:
        prepare(make_recipe(TASK, model={"path": str(tiny_decoder)}))
    assert "text-generation" in str(refused.value.hint)
    with pytest.raises(HftuneError, match="is an encoder with a decoder") as refused:
        prepare(make_recipe("text-generation", model={"path": str(tiny_seq2seq)}))
    assert "text2text-generation" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "red"}] * 9, "no column for target"),
        ([*ROWS, {"text": "red", "target": None}], "row 4 is not text but None"),
        ([{"text": "red", "target": " "}] * 9, "all 9 texts are empty"),
    ],
)
def test_bad_rows(
    rows: list[dict[str, Any]], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(HftuneError, match=says):
        prepare(make_recipe(TASK), train_dataset=Dataset.from_list(rows))


def test_empty_targets_are_counted(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe(TASK, data={"path": "x", "validation_size": 0}),
                   train_dataset=Dataset.from_list(ROWS))  # fmt: skip
    assert remarks(plan) == ["1 training row has an empty text"]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"data": {"path": "x", "max_target_length": 65}}, "beyond the model's 64 positions"),
        ({"evaluation": {"generation": {"max_new_tokens": 64}}}, "beyond the 63"),
    ],
)
def test_lengths_beyond_the_model(
    sections: dict[str, Any],
    says: str,
    make_recipe: Callable[..., Recipe],
    seq2seq_models: dict[str, Path],
) -> None:
    model = seq2seq_models["bart"]
    recipe = make_recipe(TASK, model={"path": str(model)}, **sections)
    rows = Dataset.from_list(ROWS)
    with pytest.raises(RecipeError, match=says):
        prepare(recipe, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize(
    ("generation", "says"),
    [
        ({"num_beam": 3}, "num_beams"),
        ({"num_beams": 0}, "at least 1"),
        ({"max_length": 9}, "unknown key"),
        ("greedy", "expected"),
    ],
)
def test_generation_keys(generation: Any, says: str, make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(TASK, evaluation={"generation": generation})


def test_missing_packages_are_named(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hftune.core.rules.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'hftune\[generation\]'"):
        make_recipe(TASK)
    with pytest.raises(RecipeError, match=r"pip install 'hftune\[generation\]'"):
        make_recipe("text-generation", evaluation={"generation": True})
    make_recipe(TASK, evaluation={"generation": False})
    make_recipe("text-generation")


def test_a_decoder_writes_at_evaluation(make_recipe: Callable[..., Recipe]) -> None:
    """Left-padded prompts against Task.predict on the same questions, row by row."""
    recipe = make_recipe("text-generation", {"max_steps": 2, "learning_rate": 0.01},
                         evaluation={"generation": {"max_new_tokens": 7}})  # fmt: skip
    run = hftune.train(recipe)
    lines = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert "eval_chrf" in run.metrics
    assert lines[-1]["final"]
    plan = prepare(recipe)
    assert plan.splits.examples.validation is not None
    assert isinstance(run.task, TextGeneration)
    questions = Dataset.from_list(
        [{"messages": row["messages"][:1]} for row in plan.splits.examples.validation]
    )
    how = PredictArguments(batch_size=1, max_new_tokens=7)
    alone = run.task.predict(run.model, run.tokenizer, questions, how)
    final = [line for line in lines if line["final"]]
    for line, answer, row in zip(final, alone, plan.splits.examples.validation, strict=False):
        assert line["prediction"] == answer["prediction"]
        assert line["reference"] == row["messages"][1]["content"]
        assert row["messages"][0]["content"] in line["source"]


@pytest.mark.slow
def test_a_small_model_learns_a_rule(make_recipe: Callable[..., Recipe]) -> None:
    """The whole path from rows to judged texts: new texts are written without their first word."""
    words, draw = ["red", "green", "blue", "one", "two", "three"], random.Random(0)
    texts = {" ".join(draw.choices(words, k=draw.randint(2, 5))) for _ in range(1500)}
    rows = [{"text": text, "target": text.partition(" ")[2]} for text in sorted(texts)]
    draw.shuffle(rows)
    training = {"max_steps": 500, "learning_rate": 5e-3, "per_device_train_batch_size": 32,
                "eval_strategy": "no", "save_strategy": "no", "logging_steps": 100}  # fmt: skip
    run = hftune.train(
        make_recipe(TASK, training),
        train_dataset=Dataset.from_list(rows[100:]),
        eval_dataset=Dataset.from_list(rows[:100]),
    )
    assert run.metrics["eval_exact_match"] > 0.9
