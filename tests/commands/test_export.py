# SPDX-License-Identifier: Apache-2.0
"""A plain model out of any run, and out of several: the weights are those computed by hand."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.methods.merging import merged
from hftune.methods.peft import peft_configs

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
IDS = torch.tensor([[2, 6, 7, 8, 3]])
LORA = {"name": "lora", "r": 2, "lora_alpha": 6, "target_modules": ["query", "value"]}
QUICK = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 0.05}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, labelled_file: Path
) -> Callable[..., Run]:
    """A short run of a classifier, trained once for each set of options."""
    runs: dict[str, Path] = {}

    def train(method: Any, seed: int = 1, labels: Any = None) -> Run:
        key = json.dumps([method, seed, labels])
        if key not in runs:
            training = {**QUICK, "output_dir": str(tmp_path_factory.mktemp("run")), "use_cpu": True}
            data = {"path": str(labelled_file), **({"label_names": labels} if labels else {})}
            recipe = Recipe(
                task="text-classification", model=str(tiny_encoder), data=data, method=method,
                training={**training, "seed": seed},
            )  # fmt: skip
            runs[key] = hftune.train(recipe).path
        return Run(runs[key])

    return train


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(
    "method",
    ["full", LORA, {**LORA, "use_dora": True}, {**LORA, "init_lora_weights": "pissa"}, "ia3",
     {"name": "adalora", "tinit": 0, "tfinal": 0}, {"name": "diff_pruning", "mode": "l1"},
     {**LORA, "name": "relora", "merge_every": 1}],
    ids=lambda method: method if isinstance(method, str) else "-".join(map(str, method.values())),
)  # fmt: skip
def test_one_run(method: Any, trained: Callable[..., Run], tmp_path: Path) -> None:
    run = trained(method)
    plain = hftune.export(run, tmp_path / "plain")
    assert not (plain.path / "adapter_config.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(plain.path)
    assert not isinstance(model, PeftModel)
    torch.testing.assert_close(logits(model), logits(run.model), atol=1e-5, rtol=1e-5)
    assert model.config.id2label == dict(enumerate(run.metadata.label_names))
    card = (plain.path / "README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "library_name: transformers" in card


@pytest.mark.parametrize(
    ("task", "auto"),
    [("token-classification", AutoModelForTokenClassification),
     ("text-generation", AutoModelForCausalLM), ("text2text-generation", AutoModelForSeq2SeqLM)],
)  # fmt: skip
def test_every_task(
    task: str, auto: Any, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = hftune.train(make_recipe(task, QUICK, method={"name": "lora", "r": 2}))
    hftune.export(run.path, tmp_path / "plain")
    more = {"decoder_input_ids": IDS} if task == "text2text-generation" else {}
    with torch.no_grad():
        expected = run.model(input_ids=IDS, **more).logits
        actual = auto.from_pretrained(tmp_path / "plain").eval()(input_ids=IDS, **more).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_run_on_4_bits_goes_into_the_whole_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    run = hftune.train(make_recipe("text-generation", QUICK, method={"name": "qlora", "r": 2}))
    base = AutoModelForCausalLM.from_pretrained(run.metadata.base_model)
    expected = logits(PeftModel.from_pretrained(base, str(run.model_path)))
    plain = hftune.export(run.path, tmp_path / "plain")
    assert "trained on quantized weights" in capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(plain.path)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def low_rank_update(run: Run, layer: str) -> torch.Tensor:
    """B A, times lora_alpha / r, out of the file."""
    weights = load_file(run.model_path / "adapter_model.safetensors")
    factors = [next(v for k, v in weights.items() if f"{layer}.lora_{ab}" in k) for ab in "BA"]
    return 3 * factors[0] @ factors[1]


def test_two_lora_are_the_sum_of_their_updates(
    trained: Callable[..., Run], tiny_encoder: Path, tmp_path: Path
) -> None:
    """As PEFT's cat, to rounding; PEFT's linear adds A and B apart, and is something else."""
    runs = [trained(LORA, seed) for seed in (1, 2)]
    weights = [0.7, 0.6]
    both = hftune.export(runs, tmp_path / "both", weights=weights)
    state = load_file(both.path / "model.safetensors")
    base = load_file(tiny_encoder / "model.safetensors")
    layer = "encoder.layer.1.attention.self.query"
    due = base[f"{layer}.weight"] + sum(
        weight * low_rank_update(run, layer) for weight, run in zip(weights, runs, strict=True)
    )
    torch.testing.assert_close(state[f"bert.{layer}.weight"], due)
    heads = [load_file(run.model_path / "adapter_model.safetensors") for run in runs]
    head = next(name for name in heads[0] if name.endswith("classifier.weight"))
    mean = (0.7 * heads[0][head] + 0.6 * heads[1][head]) / 1.3
    torch.testing.assert_close(state["classifier.weight"], mean)

    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=3)
    for run, name in zip(runs, "ab", strict=True):
        config = peft_configs()["lora"].from_pretrained(str(run.model_path))
        config.modules_to_save = config.task_type = None
        if name == "a":
            model = PeftModel.from_pretrained(model, str(run.model_path), "a", config=config)
        else:
            model.load_adapter(str(run.model_path), "b", peft_config=config)
    query = model.base_model.model.get_submodule(f"bert.{layer}")
    ours = state[f"bert.{layer}.weight"] - base[f"{layer}.weight"]
    for kind in ("cat", "linear"):
        model.base_model.add_weighted_adapter(["a", "b"], weights, kind, combination_type=kind)
        theirs = query.get_delta_weight(kind)
        assert torch.allclose(ours, theirs, atol=1e-6) is (kind == "cat")


def test_runs_of_any_methods_add_up(trained: Callable[..., Run], tmp_path: Path) -> None:
    """Equal parts of a whole model and an adapter; the result is evaluated and trained on."""
    runs = [trained("full"), trained(LORA)]
    both = hftune.export([run.path for run in runs], tmp_path / "both")
    states = [runs[0].model.state_dict(), merged(runs[1].model, "lora").state_dict()]
    for name, value in load_file(both.path / "model.safetensors").items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2, msg=name)
    assert "- 0.5 of `" in (both.path / "README.md").read_text()
    assert both.metadata.method == "full and lora"
    data = runs[0].recipe.data.path
    assert isinstance(data, str)
    assert hftune.evaluate(both, data)["eval_samples"] == 60
    training = {**QUICK, "output_dir": str(tmp_path / "on"), "use_cpu": True}
    recipe = Recipe(task="text-classification", model=str(both.path), data=data, training=training)
    assert hftune.train(recipe).metrics["train_loss"] > 0


def test_a_half_of_one_run(trained: Callable[..., Run], tiny_encoder: Path, tmp_path: Path) -> None:
    run = trained(LORA)
    half = hftune.export(run, tmp_path / "half", weights=[0.5], dtype="bfloat16")
    layer = "encoder.layer.0.attention.self.value"
    base = load_file(tiny_encoder / "model.safetensors")[f"{layer}.weight"]
    due = (base + 0.5 * low_rank_update(run, layer)).bfloat16()
    assert torch.equal(load_file(half.path / "model.safetensors")[f"bert.{layer}.weight"], due)


def test_dare_draws_by_its_seed(trained: Callable[..., Run], tmp_path: Path) -> None:
    runs = [trained(LORA, seed) for seed in (1, 2)]
    options: Any = {"combination": "dare_ties", "density": 0.5}
    files = []
    for number, seed in enumerate((1, 1, 2)):
        run = hftune.export(runs, tmp_path / str(number), seed=seed, **options)
        files.append((run.path / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("method", [{"name": "bottleneck"}, {"name": "prompt_tuning"}])
def test_what_cannot_be_merged_says_why(
    method: Any, trained: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(HftuneError, match=f"{method['name']} .*cannot be merged") as caught:
        hftune.export(trained(method), tmp_path / "plain")
    assert "README.md" in str(caught.value.hint) or "model card" in str(caught.value.hint)
    assert not (tmp_path / "plain").exists()


def test_runs_that_do_not_go_together(trained: Callable[..., Run], tmp_path: Path) -> None:
    first, second = trained(LORA), trained(LORA, labels=["green", "red", "blue"])
    with pytest.raises(HftuneError, match="have another labels: "):
        hftune.export([first, second], tmp_path / "x")
    for field, value in {"base_model": "me/other", "task": "token-classification"}.items():
        other = Run(second.path)
        other.metadata = dataclasses.replace(first.metadata, **{field: value})
        with pytest.raises(HftuneError, match=f"have another {field.replace('_', ' ')}: "):
            hftune.export([first, other], tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": [1.0]}, "--weights: 1 for 2 runs"),
        ({"weights": [1.0, float("nan")]}, "must be finite"),
        ({"weights": [0.0, 0.0]}, "must be finite, and not all 0"),
        ({"weights": [1.0, -1.0]}, "they add up to 0"),
        ({"combination": "cat"}, "unknown 'cat'"),
        ({"combination": "ties"}, "ties needs --density"),
        ({"density": 0.5}, "linear has no --density"),
        ({"combination": "ties", "density": 1.5}, "at most 1, not 1.5"),
        ({"dtype": "int8"}, "unknown 'int8'"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], says: str, trained: Callable[..., Run], tmp_path: Path
) -> None:
    runs = [trained(LORA, seed) for seed in (1, 2)]
    with pytest.raises(HftuneError, match=says):
        hftune.export(runs, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_there_stays(trained: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(HftuneError, match="is there already"):
        hftune.export(trained(LORA), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
