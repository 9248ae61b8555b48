# SPDX-License-Identifier: Apache-2.0
"""From ``data.token_budget`` to batches: what counts in it, and who refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM

import hftune
from hftune import HftuneError, Recipe
from hftune.tasks import preprocess as encode
from hftune.training.plan.prepare import prepare
from tests.training.sampling.budgeted import budgeted


def refused(make_recipe: Callable[..., Recipe], **options: Any) -> str:
    with pytest.raises(HftuneError) as caught:
        prepare(budgeted(make_recipe, **options))
    return f"{caught.value.message} ({caught.value.hint})"


def test_tokens_are_those_of_the_rows(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(budgeted(make_recipe))
    assert plan.splits.token_batches is not None
    assert plan.splits.token_batches.padded is None
    sizes = plan.splits.token_batches.sizes[:, 0].tolist()
    assert sizes == [len(ids) for ids in plan.splits.train.dataset["input_ids"]]


def test_sources_and_targets_both_count(make_recipe: Callable[..., Recipe]) -> None:
    """And padding too: a decoder looks at an encoder, whose batches are padded."""
    plan = prepare(budgeted(make_recipe, "text2text-generation", 60))
    assert plan.splits.token_batches is not None
    assert "looks at an encoder" in str(plan.splits.token_batches)
    collate = plan.objective.task.collator(plan.pretrained.processor)
    for rows in plan.splits.token_batches:
        batch: Any = collate([plan.splits.train.dataset[row] for row in rows])
        assert batch["input_ids"].numel() + batch["labels"].numel() <= 60


@pytest.mark.parametrize(
    ("method", "padded"),
    [("prompt_tuning", None), ("prefix_tuning", "of prefix_tuning are not packed")],
)
def test_virtual_tokens_count(
    method: str, padded: str | None, make_recipe: Callable[..., Recipe]
) -> None:
    options = {"name": method, "num_virtual_tokens": 7}
    plan = prepare(budgeted(make_recipe, budget=60, method=options))
    assert plan.splits.token_batches is not None
    lengths = [len(ids) for ids in plan.splits.train.dataset["input_ids"]]
    assert plan.splits.token_batches.sizes[:, 0].tolist() == [length + 7 for length in lengths]
    assert (padded or "None") in str(plan.splits.token_batches.padded)


@pytest.mark.parametrize(
    "said",
    [
        {"data": {"padding_free": False}},
        {"model": {"attn_implementation": "eager"}},
        {"regularization": {"drop_path": 0.1}},
    ],
)
def test_padding_counts_where_layers_work_on_it(
    said: dict[str, Any], make_recipe: Callable[..., Recipe]
) -> None:
    """Known before the weights; and the run trains so."""
    if "model" in said:
        said = {"model": {"path": make_recipe().model.path, **said["model"]}}
    recipe = budgeted(make_recipe, training={"max_steps": 2}, **said)
    plan = prepare(recipe)
    assert plan.splits.token_batches is not None
    assert plan.splits.token_batches.padded is not None
    lengths = plan.splits.token_batches.sizes[:, 0]
    assert all(len(rows) * lengths[rows].max() <= 40 for rows in plan.splits.token_batches)
    assert hftune.train(recipe).model_path.exists()


def test_a_model_that_turns_out_to_be_padded(
    make_recipe: Callable[..., Recipe], tmp_path: Path, tiny_decoder: Path
) -> None:
    """Falcon's layers are given no mask: only the trial tells, and nothing has been written."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    FalconForCausalLM(config).save_pretrained(tmp_path / "falcon")
    tokenizer.save_pretrained(tmp_path / "falcon")
    told = {"model": {"path": str(tmp_path / "falcon")}, "budget": 300}
    with pytest.raises(HftuneError, match="batches are padded") as caught:
        hftune.train(budgeted(make_recipe, "text-generation", **told))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("data.padding_free: false")
    assert not list((tmp_path / "run").glob("*.yaml"))
    data = {"padding_free": False}
    assert hftune.train(budgeted(make_recipe, "text-generation", data=data, **told)).metrics


def test_rows_beyond_the_budget(make_recipe: Callable[..., Recipe]) -> None:
    """Texts of the labelled rows have 5 to 10 tokens with their marks."""
    lengths = [len(ids) for ids in prepare(budgeted(make_recipe)).splits.train.dataset["input_ids"]]
    longest = max(lengths)
    says = refused(make_recipe, budget=longest - 1)
    number = lengths.count(longest)
    assert f"{number} of {len(lengths)} training rows" in says
    assert f"longer than {longest - 1} tokens; the longest has {longest}" in says
    assert f"a budget of {longest} or more; data.max_length: {longest - 1} cuts them" in says
    cut = budgeted(make_recipe, budget=longest - 1, data={"max_length": longest - 1})
    assert prepare(cut).splits.train.num_truncated == number
    method = {"name": "prompt_tuning", "num_virtual_tokens": 7}
    says = refused(make_recipe, budget=5, method=method)
    assert f"the longest has {longest + 7}, 7 virtual ones among them" in says
    assert "max_length" not in says
    says = refused(make_recipe, task="text2text-generation", budget=5)
    assert "data.max_length and data.max_target_length of together 5 cut them" in says


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"training": {"per_device_train_batch_size": 8}}, "training.per_device_train_batch_size"),
        ({"training": {"train_sampling_strategy": "group_by_length"}}, "train_sampling_strategy"),
        ({"training": {"auto_find_batch_size": True}}, "training.auto_find_batch_size"),
        ({"training": {"dataloader_drop_last": True}}, "training.dataloader_drop_last"),
        (
            {"training": {"learning_rate_scaling": {"rule": "linear", "batch_size": 8}}},
            "training.learning_rate_scaling",
        ),
        (
            {"training": {"accelerator_config": {"split_batches": True}}},
            "training.accelerator_config",
        ),
        ({"data": {"curriculum": "length"}}, "a curriculum"),
        ({"data": {"streaming": True, "label_names": ["a"]}}, "a stream"),
        ({"loss": "mixup"}, "compares the rows"),
        ({"loss": "supervised_contrastive"}, "compares the rows"),
        ({"method": "probe"}, "a probe is fitted"),
        ({"data": {"token_budget": 0}}, "data.token_budget"),
    ],
)
def test_what_does_not_go_with_it(
    sections: dict[str, Any], key: str, make_recipe: Callable[..., Recipe]
) -> None:
    if sections.get("method") == "probe":
        sections = {**sections, "training": {"max_steps": -1}}
    with pytest.raises(HftuneError) as caught:
        budgeted(make_recipe, **sections)
    assert key in str(caught.value)


def test_a_look_at_a_sample(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the rows, encoded, says about how many batches there will be."""
    recipe = budgeted(make_recipe, training={"max_steps": -1, "num_train_epochs": 1})
    whole = prepare(recipe).training_steps.total
    monkeypatch.setattr(encode, "AT_ONCE", 30)
    assert abs(prepare(recipe, sample=20).training_steps.total - whole) <= 0.25 * whole
    data = {"sampling": "oversample"}
    drawn = prepare(budgeted(make_recipe, data=data), sample=20)
    assert drawn.splits.token_batches is not None
    assert drawn.splits.row_sampler is not None
    assert drawn.splits.token_batches.rows == drawn.splits.row_sampler.size


def test_it_is_said(make_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    """By check and by train, and the resolved recipe can be run again."""
    recipe = budgeted(make_recipe, training={"max_steps": -1, "num_train_epochs": 1})
    plan = hftune.check(recipe)
    run = hftune.train(recipe)
    said = capsys.readouterr().err
    assert said.count(f"batches: {plan.splits.token_batches}") == 2
    assert f"optimizer steps: {plan.training_steps.total}\n" in said
    resolved = run.recipe
    assert resolved.data.token_budget == 40
    assert "per_device_train_batch_size" not in resolved.training
    figures = json.loads((run.path / "metrics.json").read_text())
    assert figures["epoch"] == 1
