# SPDX-License-Identifier: Apache-2.0
"""A probe from recipe to folder: features, folds, files, and equal answers after a load."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

import hftune
from hftune import HftuneError, Recipe
from hftune.core import cache
from hftune.core.files import sha256_of
from hftune.hub.model_card import loading_code
from hftune.hub.reload_check import check_round_trip
from hftune.hub.staging import stage
from hftune.methods.probe import features
from hftune.methods.probe import row as probe_row
from hftune.methods.probe.fit import Embedder
from hftune.methods.probe.saved_probe import ProbedModel
from hftune.models.pooling import pooled
from hftune.training.plan.prepare import prepare
from hftune.training.run_fit import prepare_runner
from tests.stop_at import StopAt

Build = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of one test are no other's; the schema stays where all tests find it."""
    schema = hftune.recipe.json_schema.recipe_schema()
    for module in (hftune.recipe.json_schema, hftune.recipe.recipe):
        monkeypatch.setattr(module, "recipe_schema", lambda: schema)
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def probe(make_recipe: Build, tmp_path: Path) -> Build:
    """``probe(method options, **sections)``."""
    model = make_recipe().model.path
    data = make_recipe().data.path

    def build(name: str = "run", *, training: dict | None = None, **sections: Any) -> Recipe:
        method = {"name": "probe", "param_grid": {}, **sections.pop("method", {})}
        return Recipe(**{
            "task": "text-classification",
            "model": model,
            "data": data,
            "method": method,
            "training": {"output_dir": str(tmp_path / name), "use_cpu": True, **(training or {})},
            **sections,
        })  # fmt: skip

    return build


def by_hand(model: str, texts: list[str], pooling: str, layer: int = -1) -> np.ndarray:
    """Each text alone, through plain Transformers."""
    tokenizer, trunk = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    read = []
    for text in texts:
        with torch.no_grad():
            output = trunk(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        hidden = output.hidden_states[layer][0]
        read.append({"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[pooling])
    return torch.stack(read).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_does_not_see_the_padding(pooling: Any, side: str) -> None:
    rows = [torch.randn(length, 4) for length in (1, 3, 5)]
    hidden, mask = torch.full((3, 5, 4), 99.0), torch.zeros(3, 5, dtype=torch.long)
    for index, row in enumerate(rows):
        here = slice(5 - len(row), 5) if side == "left" else slice(len(row))
        hidden[index, here], mask[index, here] = row, 1
    due = {"cls": lambda row: row[0], "mean": lambda row: row.mean(0), "last": lambda row: row[-1]}
    expected = torch.stack([due[pooling](row) for row in rows])
    torch.testing.assert_close(pooled(hidden, mask, pooling), expected)


@pytest.mark.parametrize(
    ("pooling", "layer", "kind"),
    [("mean", -1, "encoder"), ("cls", 1, "encoder"), ("last", -2, "encoder"),
     (None, -1, "decoder"), (None, -1, "seq2seq")],
)  # fmt: skip
def test_features_are_those_of_a_plain_forward(
    probe: Build, make_recipe: Build, pooling: Any, layer: int, kind: str
) -> None:
    task = {"decoder": "text-generation", "seq2seq": "text2text-generation"}.get(kind)
    model = make_recipe(task).model.path if task else make_recipe().model.path
    method = {"layer": layer, **({"pooling": pooling} if pooling else {})}
    fitting: Any = prepare_runner(prepare(probe(model=model, method=method)))
    X = Embedder(fitting)(fitting.rows.train)
    texts = fitting.rows.examples["text"][:]
    if kind == "seq2seq":
        tokenizer, trunk = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
        with torch.no_grad():
            ones = [trunk.get_encoder().eval()(**tokenizer(text, return_tensors="pt"))
                    for text in texts]  # fmt: skip
        expected = torch.stack([one.last_hidden_state[0].mean(0) for one in ones]).numpy()
    else:
        expected = by_hand(model, texts, pooling or "last", layer)
    np.testing.assert_allclose(X, expected, atol=2e-5)


def test_cached_features_are_equal_and_other_content_misses(
    probe: Build, labelled_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    first = hftune.train(probe("a"))
    again = hftune.train(probe("b", method={"classifier": "mlp"}))
    counted = first.metrics["train_samples"] + 6
    assert first.metrics["embedded_samples"] == counted == 60
    assert again.metrics["embedded_samples"] == 0
    plan = prepare(probe("c"))
    cached, fresh = Embedder(prepare_runner(plan)), Embedder(prepare_runner(plan))
    fresh._decides["another"] = True
    rows = plan.splits.train.dataset
    assert np.array_equal(cached(rows), fresh(rows))
    assert (cached.embedded, fresh.embedded) == (0, len(rows))

    swapped = [{**row, "text": row["text"].replace("alpha", "gamma")} for row in labelled_rows]
    changed = Dataset.from_list(swapped)  # other tokens, as many of them
    missed = [
        prepare(probe("d"), train_dataset=changed),
        prepare(probe("d", method={"pooling": "cls"})),
        prepare(probe("d", method={"layer": 1})),
        prepare(probe("d", data={"path": probe().data.path, "max_length": 4})),
    ]
    for other in missed:
        embedder = Embedder(prepare_runner(other))
        embedder(other.splits.train.dataset)
        assert embedder.embedded == len(other.splits.train.dataset)
    trunk = AutoModel.from_pretrained(probe().model.path)
    trunk.embeddings.word_embeddings.weight.data[7] += 0.5
    trunk.save_pretrained(tmp_path / "changed")
    AutoTokenizer.from_pretrained(probe().model.path).save_pretrained(tmp_path / "changed")
    embedder = Embedder(prepare_runner(prepare(probe("d", model=str(tmp_path / "changed")))))
    embedder(rows)
    assert embedder.embedded == len(rows)


def test_the_cache_drops_the_longest_unused_and_mends_what_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []

    def keep(key: str) -> np.ndarray:
        def compute() -> np.ndarray:
            made.append(key)
            return np.full((10, 10), float(len(made)), dtype=np.float32)

        return features.cached_features(key, compute)

    keep("a")
    monkeypatch.setenv("HFTUNE_CACHE_LIMIT", str(2.5 * cache.entries()[0].size / cache.GIB))
    for key in "bac":
        keep(key)
    assert sorted(path.stem for path in (tmp_path / "cache/features").iterdir()) == ["a", "c"]
    (tmp_path / "cache/features/a/features.npy").write_bytes(b"\x93NUMPY")
    assert (keep("a") == 4).all()
    assert made == ["a", "b", "c", "a"]


def test_the_run_folder_and_a_fresh_load(probe: Build, make_recipe: Build) -> None:
    data = make_recipe().data.path
    recipe = probe(data={"path": data, "validation": data}, method={"param_grid": {"C": [0.1, 1]}})
    run = hftune.train(recipe)
    files = {"recipe.yaml", "environment.json", "data.json", "log.jsonl", "metrics.json", "model"}
    assert {path.name for path in run.path.iterdir()} == files
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [line["C"] for line in log] == [0.1, 1]
    assert run.metrics["best_params"]["C"] in (0.1, 1)
    assert {"eval_f1_macro", "eval_accuracy", "eval_per_class"} <= run.metrics.keys()
    loaded = hftune.load(run.path)
    figures = hftune.evaluate(loaded, data, batch_size=7)
    for name, value in figures.items():
        if isinstance(value, float):
            assert value == pytest.approx(run.metrics[name], abs=1e-4), name

    texts = ["alpha red one", "blue", "green two three alpha four"]
    answers = hftune.predict(loaded, Dataset.from_dict({"text": texts}), batch_size=2)
    pipeline = loaded.model.head.pipeline
    expected = pipeline.predict_proba(by_hand(recipe.model.path, texts, "mean"))
    for row, due in zip(answers, expected, strict=True):
        assert list(row["scores"].values()) == pytest.approx(due.tolist(), abs=1e-4)
        assert row["prediction"] == loaded.task.label_names[int(due.argmax())]

    again = Recipe.load(run.path / "recipe.yaml", [f"training.output_dir={run.path}-again"])
    assert again.method.options["pooling"] == "mean"
    repeated = hftune.train(again)
    assert repeated.metrics["eval_loss"] == run.metrics["eval_loss"]


def rows_of(kind: str, labelled_rows: list[dict[str, str]]) -> Dataset:
    """The labelled rows, with several labels or a number in place of one label."""
    given: list[dict[str, Any]] = [dict(row) for row in labelled_rows]
    for index, row in enumerate(given):
        if kind == "several":
            row["label"] = [row["label"], *(["long"] if len(row["text"]) > 25 else [])]
        if kind == "numbers":
            row["label"] = len(row["text"]) / 7 + index / 1000
    return Dataset.from_list(given)


METHODS: dict[str, dict[str, Any]] = {
    "single": {"classifier": "gradient_boosting", "classifier_kwargs": {"max_iter": 10}},
    "several": {"pooling": "cls"},
    "numbers": {"layer": 1, "pooling": "last"},
}


@pytest.mark.parametrize("kind", METHODS)
def test_the_lines_of_the_card_give_the_predictions(
    kind: str, probe: Build, labelled_rows: list[dict[str, str]]
) -> None:
    recipe = probe(method=METHODS[kind])
    run = hftune.train(recipe, train_dataset=rows_of(kind, labelled_rows))
    assert run.metadata.probe is not None
    assert f"eval_{'r2' if kind == 'numbers' else 'f1_macro'}" in run.metrics
    made: dict[str, Any] = {}
    exec(loading_code(run.metadata, adapter=True, place=str(run.model_path)), made)
    texts = ["alpha red one", "blue", "green two three alpha four"]
    rows = hftune.predict(run, Dataset.from_dict({"text": texts}))
    name = "prediction" if kind == "numbers" else "scores"
    for row, answer in zip(rows, made["answers"](*texts), strict=True):
        assert row[name] == pytest.approx(answer, abs=1e-5)
    card = (run.model_path / "README.md").read_text()
    assert "library_name: sklearn" in card
    assert "skops.io.load" in card


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_a_fresh_process_gives_the_same(
    kind: str, probe: Build, labelled_rows: list[dict[str, str]]
) -> None:
    recipe = probe(method=METHODS[kind])
    run = hftune.train(recipe, train_dataset=rows_of(kind, labelled_rows))
    check_round_trip(run.model_path, run.metadata, run.model, run.tokenizer, adapter=True)


def test_what_is_pushed_names_the_base_on_the_hub(probe: Build, tmp_path: Path) -> None:
    run = hftune.train(probe())
    with pytest.raises(HftuneError, match="an adapter needs its base model"):
        stage(run.model_path, run.metadata, tmp_path, repo="user/probe")
    (tmp_path / "out").mkdir()
    staged = stage(
        run.model_path, run.metadata, tmp_path / "out", repo="user/probe", base="user/base"
    )
    assert {"probe.skops", "probe.json", "README.md", "hftune.json"} <= staged.sizes.keys()
    said = json.loads((staged.folder / "probe.json").read_text())
    assert said["base_model_name_or_path"] == "user/base"
    card = (staged.folder / "README.md").read_text()
    assert 'path_or_repo_id="user/probe")' in card
    assert str(tmp_path) not in card


def test_groups_and_equal_texts_are_never_in_two_folds(
    probe: Build, labelled_rows: list[dict[str, str]]
) -> None:
    rows = [{**row, "group": str(index // 4)} for index, row in enumerate(labelled_rows)]
    recipe = probe(
        data={"columns": {"group": "group"}, "validation_size": 0},
        method={"param_grid": {"C": [1]}, "cv": 4},
    )
    plan = prepare(recipe, train_dataset=Dataset.from_list([*rows, *rows[:5]]))
    folds = prepare_runner(plan).folds
    assert len(folds) == 4
    assert np.array_equal(np.sort(np.concatenate([judged for _, judged in folds])), np.arange(65))
    for column in ("group", "text"):
        values = np.array(plan.splits.examples.train[column][:])
        for kept, judged in folds:
            assert not set(values[kept]) & set(values[judged]), column


def test_damaged_and_foreign_files_are_refused(probe: Build) -> None:
    run = hftune.train(probe())
    file, config = run.model_path / "probe.skops", run.model_path / "probe.json"
    whole, said = file.read_bytes(), config.read_text()

    def loaded() -> Any:
        return hftune.load(run.path).model

    file.write_bytes(whole[:-100])
    with pytest.raises(HftuneError, match="damaged, or not the file"):
        loaded()
    written = json.loads(said)
    written["sha256"] = sha256_of(file)
    config.write_text(json.dumps(written))
    with pytest.raises(HftuneError, match="no skops file"):
        loaded()
    skops.io.dump({"pipeline": subprocess.Popen}, file)
    written["sha256"] = sha256_of(file)
    config.write_text(json.dumps(written))
    with pytest.raises(HftuneError, match=r"what no probe does.*subprocess\.Popen"):
        loaded()
    config.write_text("{")
    with pytest.raises(HftuneError, match=r"probe\.json: missing or damaged"):
        loaded()
    file.write_bytes(whole)
    config.write_text(said)
    assert isinstance(loaded(), ProbedModel)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"training": {"learning_rate": 1e-3}}, r"training\.learning_rate: no Trainer runs"),
        ({"training": {"num_train_epochs": 3}}, r"training\.num_train_epochs: no Trainer"),
        ({"training": {"eval_strategy": "epoch"}}, r"training\.eval_strategy: no Trainer"),
        ({"loss": "cross_entropy"}, "loss of its own"),
        ({"model": {"path": "x", "quantization": {"load_in_4bit": True}}}, "must be a PEFT"),
        ({"model": {"path": "x", "classifier_pooling": "mean"}}, r"say method\.pooling"),
        ({"task": "text-generation"}, "goes with text-classification only"),
        ({"method": {"classifier": "svm"}}, "'svm' is not allowed"),
        ({"method": {"cv": 1}}, "must be at least 2"),
        ({"method": {"C": 1}}, r"method\.C: unknown key"),
        ({"method": {"balance_kwargs": {"k_neighbors": 2}}}, "those of balance: smote"),
        ({"method": {"feature_selection_kwargs": {"k": 2}}}, "takes them"),
    ],
)
def test_a_recipe_that_says_what_has_no_effect_is_refused(
    sections: dict[str, Any], says: str, probe: Build
) -> None:
    with pytest.raises(HftuneError, match=says):
        probe(**sections)


@pytest.mark.parametrize("package", ["skops", "imblearn"])
def test_a_missing_extra_is_named(
    package: str, probe: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_row, "installed", lambda name: name != package)
    with pytest.raises(HftuneError, match=r"pip install 'hftune\[probe\]'"):
        probe(method={"balance": "smote"})


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"layer": 3}, "from 0, the embeddings, to 2"),
        ({"balance": "smote", "balance_kwargs": {"k_neighbors": 20}},
         "smote needs 21 rows of each label, and 'blue' has 9"),
        ({"balance": "smote", "balance_kwargs": {"k_neighbors": 8}, "param_grid": {"C": [1]}},
         "training part of a fold"),
        ({"cv": 60, "param_grid": {"C": [1]}}, "60 folds need as many groups"),
    ],
)  # fmt: skip
def test_rows_that_do_not_suffice_are_refused_before_the_folder(
    method: dict[str, Any], says: str, probe: Build
) -> None:
    recipe = probe(method=method)
    with pytest.raises(HftuneError, match=says):
        hftune.train(recipe)
    assert not Path(recipe.training["output_dir"]).exists()


def test_what_only_a_trainer_uses_is_refused(probe: Build) -> None:
    for given in ({"resume": True}, {"callbacks": [StopAt(1)]}, {"model": torch.nn.Linear(1, 1)}):
        with pytest.raises(HftuneError, match="no Trainer runs for a probe"):
            hftune.train(probe(), **given)
    with pytest.raises(HftuneError, match="what a probe reads"):
        hftune.explain(hftune.train(probe()), "red")


def test_check_says_what_would_be_fitted(probe: Build, capsys: pytest.CaptureFixture[str]) -> None:
    hftune.check(probe())
    assert "no Trainer runs; a probe: classifier logistic_regression" in capsys.readouterr().err
