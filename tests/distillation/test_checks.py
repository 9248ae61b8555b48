# SPDX-License-Identifier: Apache-2.0
"""A teacher that does not fit is refused before any weight is loaded, and the message says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from hftune import HftuneError, Recipe, RecipeError
from hftune.training.plan.prepare import prepare

Make = Callable[..., Recipe]
NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A plain classifier with the student's labels, four layers, twice as wide."""
    folder = tmp_path_factory.mktemp("teachers") / "wide"
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    known = json.loads((tiny_encoder / "config.json").read_text())
    config = BertConfig(
        vocab_size=known["vocab_size"], hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(teacher: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a copy of the teacher with other fields in its config."""

    def change(**fields: Any) -> str:
        folder = tmp_path / "teacher"
        shutil.copytree(teacher, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
        return str(folder)

    return change


def refused(recipe: Recipe, match: str) -> None:
    with pytest.raises(HftuneError, match=match) as caught:
        prepare(recipe)
    assert caught.value.exit_code == 2


def test_it_fits(make_recipe: Make, teacher: Path) -> None:
    plan = prepare(make_recipe(distillation=str(teacher)))
    assert plan.objective.task.label_names == NAMES


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("./nowhere/teacher", r"distillation.teacher: \./nowhere/teacher: no such folder"),
        (
            "no-one/no-model",
            "distillation.teacher: no-one/no-model: there is no such folder; as a m",
        ),
    ],
)
def test_unknown_path(path: str, match: str, make_recipe: Make) -> None:
    refused(make_recipe(distillation=path), match)


def test_what_is_no_teacher(make_recipe: Make, tiny_encoder: Path, tmp_path: Path) -> None:
    refused(make_recipe(distillation=str(tiny_encoder)), "BertModel has no trained head")
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "recipe.yaml").write_text("task: text-classification\n")
    refused(make_recipe(distillation=str(tmp_path / "half")), "the run has no finished model")


def test_other_labels(make_recipe: Make, changed: Callable[..., str], labelled_file: Path) -> None:
    few = {"0": "red", "1": "blue"}
    path = changed(id2label=few, label2id={name: int(i) for i, name in few.items()})
    refused(make_recipe(distillation=path), "it does not know green")
    listed = {"path": str(labelled_file), "label_names": NAMES}
    refused(make_recipe(distillation=path, data=listed), "it does not know green")


def test_labels_without_names(
    make_recipe: Make, changed: Callable[..., str], labelled_file: Path
) -> None:
    unnamed = {str(i): f"LABEL_{i}" for i in range(3)}
    path = changed(id2label=unnamed, label2id={name: int(i) for i, name in unnamed.items()})
    refused(make_recipe(distillation=path), "its 3 labels have no names")
    prepare(make_recipe(distillation=path, data={"path": str(labelled_file),
                                                 "label_names": NAMES}))  # fmt: skip


def test_a_teacher_that_knows_more_gives_its_labels(
    make_recipe: Make, changed: Callable[..., str], labelled_file: Path
) -> None:
    more = {str(i): name for i, name in enumerate([*NAMES, "violet"])}
    path = changed(id2label=more, label2id={name: int(i) for i, name in more.items()})
    assert prepare(make_recipe(distillation=path)).objective.task.label_names == [*NAMES, "violet"]
    listed = {"path": str(labelled_file), "label_names": NAMES}
    refused(make_recipe(distillation=path, data=listed), "it also knows violet")


def test_another_problem_type(make_recipe: Make, changed: Callable[..., str]) -> None:
    path = changed(problem_type="multi_label_classification")
    recipe = make_recipe(distillation=path, model={
        "path": str(make_recipe().model.path),
        "config": {"problem_type": "single_label_classification"}})  # fmt: skip
    refused(recipe, "multi_label_classification, and this is single_label_classification")


def test_other_tokens(make_recipe: Make, changed: Callable[..., str]) -> None:
    path = Path(changed())
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["alpha"], vocabulary["beta"] = vocabulary["beta"], vocabulary["alpha"]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(make_recipe(distillation=str(path)), "another vocabulary than the student's")
    vocabulary["alpha"], vocabulary["beta"] = vocabulary["beta"], vocabulary["alpha"]
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "red"}, "content": "blue"}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(make_recipe(distillation=str(path)), "its tokenizer cuts a text otherwise")


def test_fewer_positions(make_recipe: Make, changed: Callable[..., str]) -> None:
    path = changed(max_position_embeddings=5)
    refused(make_recipe(distillation=path), "rows have up to 10 tokens, and it takes 5")


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"hidden_states": {3: 1}}, "hidden_states: the student has no 3: they go from 0 to 2"),
        ({"hidden_states": {1: 5}}, "hidden_states: the teacher has no 5: they go from 0 to 4"),
        ({"attentions": {2: 1}}, "attentions: the student has no 2: they go from 0 to 1"),
        ({"attentions": {1: 1}}, "num_attention_heads is 2 of the student and 4 of the teacher"),
    ],
    ids=str,
)
def test_layers(section: dict[str, Any], match: str, make_recipe: Make, teacher: Path) -> None:
    model = {"path": str(make_recipe().model.path), "attn_implementation": "eager"}
    refused(make_recipe(model=model, distillation={"teacher": str(teacher), **section}), match)


def test_a_layer_between_widths_needs_an_optimizer_that_takes_it(
    make_recipe: Make, teacher: Path
) -> None:
    section = {"teacher": str(teacher), "hidden_states": {1: 1}}
    prepare(make_recipe(distillation=section))
    recipe = make_recipe(distillation=section, training={"optim": "muon"})
    refused(recipe, "is 32 of the student and 64 of the teacher, and training.optim muon")


def test_another_task(make_recipe: Make, teacher: Path, tmp_path: Path) -> None:
    refused(
        make_recipe("token-classification", distillation=str(teacher)), "has no trained head for"
    )
    refused(
        make_recipe("text-generation", distillation={"teacher": str(tmp_path), "top_k": 4}),
        "no config.json in it",
    )


def test_too_many_tokens_at_the_top(make_recipe: Make, tiny_decoder: Path) -> None:
    recipe = make_recipe(
        "text-generation", distillation={"teacher": str(tiny_decoder), "top_k": 5000}
    )
    refused(recipe, r"top_k: 5000 of \d+ tokens are all")


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"distillation": {"teacher": "t", "temperature": 0}}, "temperature: must be above 0"),
        ({"distillation": {"teacher": "t", "alpha": 1.5}}, "alpha: must be at most 1, got 1.5"),
        ({"distillation": {"teacher": "t", "alpha": -0.1}}, "alpha: must be at least 0"),
        ({"distillation": {"teacher": "t", "alpha": 0}}, "the teacher's answers count nothing"),
        ({"distillation": {"alpha": 0.5}}, "distillation.teacher: missing"),
        ({"distillation": "weight_averaging"}, "set regularization.weight_averaging: ema"),
        (
            {"distillation": "weight_averaging", "regularization": {"weight_averaging": "swa"}},
            "is the average that fades",
        ),
        ({"distillation": {"teacher": ["t", "weight_averaging"]}}, "teaches alone, not in a list"),
        (
            {
                "distillation": {"teacher": "weight_averaging", "cache": True},
                "regularization": {"weight_averaging": "ema"},
            },
            "changes with every step",
        ),
        (
            {
                "distillation": {"teacher": "weight_averaging", "hidden_states": {1: 1}},
                "regularization": {"weight_averaging": "ema"},
            },
            "has the student's layers already",
        ),
        (
            {
                "distillation": {
                    "teacher": "t",
                    "alpha": 0,
                    "hidden_states": {1: 1},
                    "warmup_steps": 3,
                }
            },
            "nothing that could grow",
        ),
        ({"distillation": {"teacher": []}}, "name a teacher"),
        ({"distillation": {"teacher": "t", "top_k": 4}}, "classes are a vocabulary"),
        ({"distillation": {"teacher": "t", "temprature": 2}}, "did you mean temperature"),
        ({"distillation": {"teacher": "t", "hidden_states": [1]}}, "expected a mapping"),
        ({"distillation": {"teacher": "t", "hidden_states": {"one": 1}}}, "a whole number from 0"),
        ({"distillation": {"teacher": "t", "attentions": {0: 0}}}, "attn_implementation: eager"),
        ({"distillation": {"teacher": "t", "hidden_states_weight": 2}}, "is that of hidden_states"),
        ({"distillation": {"teacher": ["a", "b"], "hidden_states": {0: 0}}}, "of one teacher"),
        ({"distillation": {"teacher": "t", "hidden_states": {0: 0}, "cache": True}}, "not kept"),
        ({"distillation": "t", "loss": "r_drop"}, "run a batch in a way"),
        ({"distillation": {"teacher": "t", "alpha": 1}, "loss": "focal"}, "labels count nothing"),
        ({"distillation": "t", "method": "probe"}, "a probe is fitted on labels"),
        ({"distillation": "t", "evaluation": {"prior": "uniform"}}, "shares is not known"),
        ({"data": {"path": "a.csv", "unlabelled": "b.csv"}}, "only a teacher can teach rows"),
        ({"model": {"path": "m", "keep_layers": [2, 0]}}, "from the lowest to the highest"),
        ({"model": {"path": "m", "keep_layers": [0]}, "method": "lora"}, "leaves a whole model"),
        ({"task": "text-generation", "distillation": {"teacher": "t", "cache": True}}, "set top_k"),
    ],
    ids=str,
)
def test_recipes_that_say_what_cannot_be(sections: dict[str, Any], match: str) -> None:
    given = {"task": "text-classification", "model": "m", "data": "a.csv", "method": "full"}
    with pytest.raises(RecipeError, match=match):
        Recipe(**{**given, **sections})


def test_a_student_of_its_own_layers_by_a_recipe(make_recipe: Make, tiny_encoder: Path) -> None:
    import hftune

    keep = {"path": str(tiny_encoder), "keep_layers": [1]}
    run = hftune.train(make_recipe(model=keep, training={"learning_rate": 1e-9}))
    base = BertModel.from_pretrained(tiny_encoder)
    saved = BertForSequenceClassification.from_pretrained(run.model_path)
    assert saved.config.num_hidden_layers == 1
    assert saved.config.label2id.keys() == {"red", "green", "blue"}
    theirs = base.encoder.layer[1].attention.self.query.weight
    mine = saved.bert.encoder.layer[0].attention.self.query.weight
    assert (mine - theirs).abs().max() < 1e-6
    assert run.recipe.model.keep_layers == [1]
    assert hftune.evaluate(run.path, prepare(run.recipe).splits.examples.train)["eval_loss"] > 0
    refused(make_recipe(model={**keep, "keep_layers": [0, 2]}), "there is no layer 2")
