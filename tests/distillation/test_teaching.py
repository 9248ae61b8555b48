# SPDX-License-Identifier: Apache-2.0
"""Teachers at work, in every task: run on each batch or kept, and what the student makes of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.core import manifest
from hftune.distillation.distillation_loss import Distillation
from hftune.distillation.teaching import (
    KeptTeacher,
    RunningTeacher,
    with_teacher,
)
from hftune.losses.loss import ROW
from hftune.training.build import rows_of, teaching_of
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare

CLASSIFICATION, TAGS = "text-classification", "token-classification"
WRITING = ("text-generation", "text2text-generation")
Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def teachers(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: Path,
    tiny_decoder: Path,
    tiny_seq2seq: Path,
    labelled_file: Path,
    tagged_file: Path,
) -> dict[str, Path]:
    """A teacher of each task: two trained runs, and two models as they are."""
    folder = tmp_path_factory.mktemp("teachers")
    for task, rows in ((CLASSIFICATION, labelled_file), (TAGS, tagged_file)):
        training = {
            "output_dir": str(folder / task), "use_cpu": True, "max_steps": 6,
            "learning_rate": 3e-3, "save_strategy": "no", "eval_strategy": "no",
        }  # fmt: skip
        hftune.train(
            Recipe(
                task=task, model=str(tiny_encoder), data=str(rows), method="full", training=training
            )
        )
    tasks = {task: folder / task for task in (CLASSIFICATION, TAGS)}
    return {**tasks, WRITING[0]: tiny_decoder, WRITING[1]: tiny_seq2seq}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers are kept for one test; the schema is not read again."""
    from hftune.core.cache import cache_folder

    schemas = cache_folder("schema")
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "schema").symlink_to(schemas)
    return tmp_path / "cache" / "answers"


@pytest.fixture
def student(make_recipe: Make, teachers: dict[str, Path], tiny_encoder: Path) -> Make:
    """Build a recipe with the task's teacher."""

    def build(task: str = CLASSIFICATION, **sections: Any) -> Recipe:
        given = sections.pop("distillation", {})
        return make_recipe(task, distillation={"teacher": str(teachers[task]), **given}, **sections)

    return build


def taught_plan(recipe: Recipe, **given: Any) -> Plan:
    """Return a plan whose loss has its teacher."""
    plan = prepare(recipe, **given)
    loss = with_teacher(plan.objective.loss, teaching_of(plan), rows_of(plan))
    return replace(plan, objective=replace(plan.objective, loss=loss))


def first_batch(plan: Plan, rows: Any = slice(0, 8)) -> dict[str, Tensor]:
    """Return a batch of training rows."""
    every = rows_of(plan)
    chosen = [every[index] for index in range(len(every))][rows]
    batch: Any = plan.objective.task.collator(plan.pretrained.processor)(chosen)
    return dict(batch)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (CLASSIFICATION, {"temperature": 4.0, "alpha": 0.7}),
        (TAGS, {"alpha": 0.8}),
        (WRITING[0], {"top_k": 12}),
        (WRITING[1], {"top_k": 5}),
    ],
    ids=str,
)
def test_kept_answers_train_the_same_model(
    task: str, options: dict[str, Any], student: Make, tmp_path: Path
) -> None:
    """Eight steps, more than an epoch, in batches that were padded otherwise."""
    runs = {}
    for name, cache in (("running", False), ("kept", True)):
        recipe = student(
            task,
            distillation={**options, "cache": cache},
            data={"path": str(student(task).data.path), "validation_size": 0},
            training={"output_dir": str(tmp_path / name), "max_steps": 8, "learning_rate": 1e-3,
                      "save_strategy": "no"},
        )  # fmt: skip
        runs[name] = hftune.train(recipe)
    losses = [
        [json.loads(line).get("loss") for line in (run.path / "log.jsonl").read_text().splitlines()]
        for run in runs.values()
    ]
    assert len([loss for loss in losses[0] if loss is not None]) == 8
    for running, kept in zip(*losses, strict=True):
        assert kept == (None if running is None else pytest.approx(running, abs=1e-6))
    running, kept = (load_file(run.model_path / "model.safetensors") for run in runs.values())
    for name, weight in running.items():
        if "key" in name and name.endswith("bias"):
            continue  # softmax takes it out, so its gradient is rounding, which Adam makes large
        torch.testing.assert_close(kept[name], weight, atol=1e-5, rtol=0)


def test_answers_are_found_again_and_damage_is_seen(
    student: Make, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = taught_plan(student())
    assert "answers 54 rows, once for this content" in capsys.readouterr().err
    (kept,) = own_cache.iterdir()
    again = taught_plan(student(distillation={"temperature": 5.0, "alpha": 0.3}))
    assert "answers to 54 rows, out of the cache" in capsys.readouterr().err
    batch = first_batch(first)
    said = [plan.objective.loss.teacher.answer(batch).logits for plan in (first, again)]  # type: ignore[attr-defined]
    assert torch.equal(*said)
    whole = (kept / "logits").read_bytes()
    (kept / "logits").unlink()  # a mapped file is not written into
    (kept / "logits").write_bytes(whole[:-4] + b"\0\0\0\1")
    repaired = taught_plan(student())
    assert "once for this content" in capsys.readouterr().err
    assert torch.equal(repaired.objective.loss.teacher.answer(batch).logits, said[0])  # type: ignore[attr-defined]
    (kept / manifest.FILE).write_text("{}")
    assert isinstance(taught_plan(student()).objective.loss.teacher, KeptTeacher)  # type: ignore[attr-defined]
    assert (kept / "logits").read_bytes() == whole


def test_another_teacher_or_other_rows_have_other_answers(
    student: Make, own_cache: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    taught_plan(student())
    taught_plan(
        student(data={"path": str(prepare(student()).settings.recipe.data.path), "max_length": 4})
    )
    assert len(list(own_cache.iterdir())) == 2
    other = tmp_path / "other"
    shutil.copytree(teachers[CLASSIFICATION], other)
    weights = load_file(other / "model" / "model.safetensors")
    from safetensors.torch import save_file

    weights["classifier.bias"] += 1
    save_file(weights, other / "model" / "model.safetensors", metadata={"format": "pt"})
    taught_plan(student(distillation={"teacher": str(other)}))
    assert len(list(own_cache.iterdir())) == 3


def test_a_full_disk_lets_the_teacher_run_in_every_step(
    student: Make,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
    small_files: Callable[[int], None],
) -> None:
    plan = prepare(student())
    small_files(256)
    loss = with_teacher(plan.objective.loss, teaching_of(plan), rows_of(plan))
    assert isinstance(loss, Distillation)
    assert isinstance(loss.teacher, RunningTeacher)
    said = capsys.readouterr().err
    assert "warning: the teacher's answers are not kept: File too large" in said
    assert list(own_cache.iterdir()) == []


def test_several_teachers_and_labels_in_another_order(
    make_recipe: Make, teachers: dict[str, Path], labelled_file: Path
) -> None:
    """The target is the mean of what both predict by name."""
    names = ["blue", "red", "green"]
    first = str(teachers[CLASSIFICATION])
    second = hftune.train(make_recipe(data={"path": str(labelled_file), "label_names": names}))
    recipe = make_recipe(
        data={"path": str(labelled_file), "validation_size": 0},
        distillation={"teacher": [first, str(second.path)], "temperature": 1.0},
    )
    plan = taught_plan(recipe)
    assert plan.objective.task.label_names == hftune.load(first).metadata.label_names != names
    batch = first_batch(plan)
    answer = plan.objective.loss.teacher.answer(batch)  # type: ignore[attr-defined]
    shares = answer.logits.softmax(-1).mean(0)
    texts = plan.splits.examples.train.select(range(8))
    predicted = [
        run.task.predict(run.model, run.tokenizer, texts, _how())
        for run in (hftune.load(first), second)
    ]
    for row, (one, other) in enumerate(zip(*predicted, strict=True)):
        for index, name in enumerate(plan.objective.task.label_names):
            mean = (one["scores"][name] + other["scores"][name]) / 2
            assert shares[row, index].item() == pytest.approx(mean, abs=1e-6)


def _how() -> Any:
    from hftune.tasks.task import PredictArguments

    return PredictArguments(max_length=64)


def test_rows_without_a_label_are_taught_by_the_teacher_alone(
    make_recipe: Make,
    teachers: dict[str, Path],
    labelled_rows: list[dict[str, str]],
    tmp_path: Path,
) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in labelled_rows]
    for index, row in enumerate(rows):
        row["label"] = row["label"] if index % 3 == 0 else ("" if index % 2 else None)
    bare = [{"text": f"beta {row['text']}"} for row in labelled_rows[:7]]
    for name, lines in (("rows", rows), ("bare", [*bare, {"text": rows[0]["text"]}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    recipe = make_recipe(
        data={"path": str(tmp_path / "rows.jsonl"), "unlabelled": str(tmp_path / "bare.jsonl"),
              "validation_size": 4},
        distillation={"teacher": str(teachers[CLASSIFICATION]), "alpha": 0.5},
    )  # fmt: skip
    plan = taught_plan(recipe)
    assert plan.splits.validation is not None
    assert plan.splits.examples.unlabelled is not None
    assert set(plan.splits.examples.validation["label"]) <= {"red", "green", "blue"}  # type: ignore[index]
    held_out = set(plan.splits.examples.validation["text"])  # type: ignore[index]
    assert not held_out & set(plan.splits.examples.unlabelled["text"])
    every = rows_of(plan)
    assert plan.training_steps.per_epoch == -(-len(every) // 8)
    labels = torch.tensor(every["labels"][:])
    assert (labels != -100).sum() == len(plan.splits.examples.train)
    assert every[ROW][:] == list(range(len(every)))
    batch = first_batch(
        plan, slice(len(plan.splits.examples.train) - 2, len(plan.splits.examples.train) + 6)
    )
    assert plan.objective.loss.denominator(batch).tolist() == [8, 2]
    report = json.loads((hftune.train(recipe).path / "data.json").read_text())
    assert report["unlabelled"]["rows"] == len(plan.splits.examples.unlabelled)
    assert sum(report["classes"].values()) == len(plan.splits.examples.train)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_other_labels_are_taught_too(
    kind: str, make_recipe: Make, labelled_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Cells by their sigmoid, numbers by their square; a row without them by the teacher alone."""
    several = kind.startswith("multi")
    rows: list[dict[str, Any]] = [
        {"text": r["text"], "label": [r["label"]] if several else len(r["text"]) / 10}
        for r in labelled_rows
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = hftune.train(make_recipe(data=str(path), training={"output_dir": str(tmp_path / "t")}))
    assert run.metadata.task_options["problem_type"] == kind
    for row in rows[::2]:
        row["label"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = make_recipe(data=str(path), distillation=str(run.path))
    plan = taught_plan(recipe)
    assert plan.objective.task.problem_type == kind
    assert plan.splits.unlabelled is not None
    batch = first_batch(
        plan, slice(len(plan.splits.train.dataset) - 4, len(plan.splits.train.dataset) + 4)
    )
    cells = 3 if several else 1
    assert plan.objective.loss.denominator(batch).tolist() == [8 * cells, 4 * cells]
    total, _ = plan.objective.loss.total(run.model, batch)
    assert total[0].item() == pytest.approx(0, abs=1e-5)  # the teacher is its own best student
    assert hftune.train(recipe).metrics["eval_loss"] > 0
    if not several:
        warm = {"teacher": str(run.path), "temperature": 2.0}
        with pytest.raises(HftuneError, match="a teacher's number has none to divide"):
            prepare(make_recipe(data=str(path), distillation=warm))


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    student: Make, teachers: dict[str, Path]
) -> None:
    recipe = student(
        model={"path": str(teachers[CLASSIFICATION] / "model"), "attn_implementation": "eager"},
        distillation={"hidden_states": {0: 0, 1: 1, 2: 2}, "attentions": {0: 0, 1: 1}, "alpha": 1},
    )
    plan = taught_plan(recipe)
    model = hftune.load(teachers[CLASSIFICATION]).model
    model.set_attn_implementation("eager")
    batch = first_batch(plan)
    assert plan.objective.loss.denominator(batch).tolist() == [
        8,
        *[int(batch["attention_mask"].sum())] * 2,
    ]
    total, _ = plan.objective.loss.total(model, batch)
    assert total.abs().max() < 1e-5
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[0].parameters():
            parameter.mul_(1.5)
    total, _ = plan.objective.loss.total(model, batch)
    assert total.min() > 1e-3
    assert not any(p.requires_grad for p in plan.objective.loss.teacher.models[0].parameters())  # type: ignore[attr-defined]
    assert not plan.objective.loss.teacher.models[0].training  # type: ignore[attr-defined]


def test_evaluation_tells_the_plain_loss(student: Make) -> None:
    run = hftune.train(student(distillation={"alpha": 1.0}))
    file = prepare(run.recipe).splits.examples.validation
    judged = hftune.evaluate(Run(run.path), file)  # type: ignore[arg-type]
    assert run.metrics["eval_loss"] == pytest.approx(judged["eval_loss"], abs=1e-6)
    assert run.recipe.distillation is not None  # the resolved recipe has it


def test_adapters_teach(
    student: Make, make_recipe: Make, tiny_decoder: Path, tmp_path: Path
) -> None:
    """One of hftune's with its labels, and a plain one of a language model."""
    lora = hftune.train(make_recipe(method="lora", training={"output_dir": str(tmp_path / "lora")}))
    plan = taught_plan(student(distillation={"teacher": str(lora.path), "cache": False}))
    batch = first_batch(plan)
    mine = lora.model(**{k: v for k, v in batch.items() if k not in ("labels", ROW)}).logits
    torch.testing.assert_close(plan.objective.loss.teacher.answer(batch).logits[0], mine)  # type: ignore[attr-defined]
    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    adapter = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "adapter")
    recipe = student(WRITING[0], distillation={"teacher": str(tmp_path / "adapter"), "top_k": 3})
    assert isinstance(taught_plan(recipe).objective.loss.teacher, KeptTeacher)  # type: ignore[attr-defined]
    with pytest.raises(HftuneError, match="does not say its labels"):
        prepare(student(distillation={"teacher": str(tmp_path / "adapter")}))
