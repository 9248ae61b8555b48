# SPDX-License-Identifier: Apache-2.0
"""From plan to model: types of weights, quantized bases, pooling, and what a GPU makes of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import hftune
from hftune import HftuneError, Recipe, RecipeError
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from hftune.training.plan.remarks import remarks

#: Adam would blow up the rounding of a gradient that is truly zero, as that of a key's bias.
SGD = {"optim": "sgd", "learning_rate": 0.1}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize("anew", [{}, {"reinit_top_layers": 1}])
def test_all_but_what_is_said_to_be_new_equals_the_checkpoint(
    anew: dict,
    make_recipe: Callable[..., Recipe],
    tiny_encoder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = load_model(prepare(make_recipe(initialization=anew))).model
    new = ["bert.encoder.layer.1", "classifier"] if anew else ["classifier"]
    assert f"not out of the checkpoint: {', '.join(new)}\n" in capsys.readouterr().err
    stored = load_file(tiny_encoder / "model.safetensors")
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(f"{module}." for module in new)):
            assert torch.equal(parameter, stored[name.removeprefix("bert.")]), name


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_weights_come_in_the_type_asked_for(
    dtype: str, expected: torch.dtype, make_recipe: Callable[..., Recipe], tiny_decoder: Path
) -> None:
    model = {"path": str(tiny_decoder), "dtype": dtype}
    plan = prepare(make_recipe("text-generation", model=model, method="lora"))
    assert plan.context().dtype is expected
    built = load_model(plan).model
    assert built.get_base_model().model.embed_tokens.weight.dtype is expected
    adapter = [p.dtype for p in built.parameters() if p.requires_grad]
    assert set(adapter) == {torch.float32}  # small numbers need the precision


@pytest.mark.parametrize("epochs", [{}, {"num_train_epochs": 3}])
def test_epochs_beside_max_steps_are_remarked_on(
    epochs: dict, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(training={"max_steps": 5, **epochs})
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    for again in (recipe, Recipe.load(path)):
        said = [remark for remark in remarks(prepare(again)) if "num_train_epochs" in remark]
        assert len(said) == len(epochs)


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"optim": "stable_adamw"}, "stable_adamw: .*torch-optimi"),
        ({"optim": "galore_adamw"}, "galore_adamw: .*"),
    ],
)
def test_an_optimizer_that_cannot_be_made_shows_before_the_weights(
    training: dict, says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=f"training.optim: {says}"):
        prepare(make_recipe(training=training))


@pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of itself
def test_lora_on_a_four_bit_base(make_recipe: Callable[..., Recipe], tiny_decoder: Path) -> None:
    """QLoRA on the CPU: the base is 4-bit and stands still, the adapter learns and reloads."""
    model = {"path": str(tiny_decoder), "quantization": NF4}
    training = {"max_steps": 10, "learning_rate": 1e-2}
    run = hftune.train(make_recipe("text-generation", training, model=model, method="lora"))
    base = run.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert type(base).__name__ == "Linear4bit"
    weights = AutoModelForCausalLM.from_pretrained(tiny_decoder).num_parameters()
    assert run.metrics["parameters"] - run.metrics["trainable_parameters"] == weights
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0]
    assert "load_in_4bit: true" in (run.path / "recipe.yaml").read_text()
    batch = run.tokenizer("alpha beta", return_tensors="pt")
    with torch.no_grad():
        expected = run.model.eval()(**batch).logits
        reloaded = hftune.load(run.path).model(**batch).logits
    torch.testing.assert_close(reloaded, expected, atol=1e-5, rtol=0)


def test_the_unused_pooler_of_a_mean_pooled_checkpoint_trains(
    make_recipe: Callable[..., Recipe], tiny_encoder: Path, tmp_path: Path
) -> None:
    """As sentence-transformers saves them: 1_Pooling/config.json beside the weights."""
    import shutil

    folder = tmp_path / "sentence"
    shutil.copytree(tiny_encoder, folder)
    (folder / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    plan = prepare(make_recipe(model={"path": str(folder)}, method="lora"))
    saved = load_model(plan).model.peft_config["default"].modules_to_save
    assert set(saved) == {"bert.pooler", "classifier", "score"}


def test_mean_pooling_survives_the_round_trip(
    make_recipe: Callable[..., Recipe], tiny_encoder: Path
) -> None:
    model = {"path": str(tiny_encoder), "classifier_pooling": "mean"}
    for method in ("lora", "full"):
        output = {"output_dir": str(tiny_encoder.parent / f"pooled-{method}")}
        run = hftune.train(make_recipe(training=output, model=model, method=method))
        batch = run.tokenizer(
            ["alpha red", "two green blue one"], return_tensors="pt", padding=True
        )
        run.model.eval()
        with torch.no_grad():
            expected = run.model(**batch).logits
            actual = hftune.load(run.path).model(**batch).logits
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        assert "The head of this model reads the mean" in (run.model_path / "README.md").read_text()


def test_precision_of_the_launcher_is_kept(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Accelerate chose is in the resolved recipe, so that it repeats without Accelerate."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = hftune.train(make_recipe())
    assert "bf16: true" in (run.path / "recipe.yaml").read_text()
    assert json.loads((run.path / "environment.json").read_text())["mixed_precision"] == "bf16"


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_a_gpu_trains_in_bf16_and_agrees_with_the_cpu(
    task: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    on_gpu = hftune.train(make_recipe(task, {"use_cpu": False}, method="lora"))
    environment = json.loads((on_gpu.path / "environment.json").read_text())
    assert environment["device"] == "cuda"
    output = {"output_dir": str(tmp_path / "cpu")}
    on_cpu = hftune.train(make_recipe(task, output, method="lora"))
    assert on_gpu.metrics["eval_loss"] == pytest.approx(on_cpu.metrics["eval_loss"], rel=0.02)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_qlora_on_a_gpu(make_recipe: Callable[..., Recipe], tiny_decoder: Path) -> None:
    model = {
        "path": str(tiny_decoder),
        "quantization": {**NF4, "bnb_4bit_compute_dtype": "bfloat16"},
    }
    training = {"use_cpu": False, "max_steps": 10, "learning_rate": 1e-2}
    plan = prepare(make_recipe("text-generation", training, model=model, method="lora"))
    trainer = build_trainer(plan, load_model(plan))
    assert trainer.train().metrics["train_loss"] > 0


def test_a_decoder_classifier_reads_the_last_token_in_any_batch(
    make_recipe: Callable[..., Recipe], tiny_decoder: Path, tmp_path: Path
) -> None:
    """A base without a padding token, as Llama's: the saved adapter scores padded rows alike."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path / "unpadded"
    model = LlamaForCausalLM.from_pretrained(tiny_decoder)
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    for method in ("lora", "prefix_tuning"):
        output = {"output_dir": str(tmp_path / method)}
        recipe = make_recipe(training=output, model={"path": str(folder)}, method=method)
        run = hftune.load(hftune.train(recipe).path)
        texts = ["alpha", "one two three four five"]
        together = run.tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            padded = run.model(**together).logits
            alone = [run.model(**run.tokenizer(t, return_tensors="pt")).logits for t in texts]
        torch.testing.assert_close(padded, torch.cat(alone), atol=1e-5, rtol=0)
    with pytest.raises(HftuneError, match="would read padding"):
        prepare(make_recipe(model={"path": str(folder)}, method="prompt_tuning"))


def test_a_published_classifier_takes_new_labels(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = hftune.train(make_recipe())
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "".join(f"{w} {i},{w}\n" for i in range(9) for w in "ab"))
    output = {"output_dir": str(tmp_path / "second")}
    recipe = make_recipe(
        training=output,
        model={"path": str(first.model_path)},
        data={"path": str(other)},
        method="lora",
    )
    second = hftune.train(recipe)
    assert second.metadata.label_names == ["a", "b"]
    assert "classifier" in second.model.peft_config["default"].modules_to_save
    trunk = {"path": str(first.model_path), "config": {"intermediate_size": 32}}
    with pytest.raises(HftuneError, match=r"weights of another size: bert\.encoder"):
        load_model(prepare(make_recipe(model=trunk)))


def test_heads_train_in_full_precision_under_autocast(
    make_recipe: Callable[..., Recipe], tiny_encoder: Path
) -> None:
    model = {"path": str(tiny_encoder), "dtype": "bfloat16"}
    plan = prepare(make_recipe(training={"bf16": True}, model=model, method="lora"))
    built = load_model(plan).model
    assert {p.dtype for p in built.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in built.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert build_trainer(plan, LoadedModel(built)).train().metrics["train_loss"] > 0


@pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of itself
def test_a_four_bit_encoder_keeps_its_head(
    make_recipe: Callable[..., Recipe], tiny_encoder: Path
) -> None:
    model = {"path": str(tiny_encoder), "quantization": NF4}
    run = hftune.train(make_recipe(model=model, method="lora"))
    assert isinstance(run.model.get_base_model().classifier.original_module, torch.nn.Linear)
    assert run.metrics["eval_loss"] > 0


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation"])
def test_a_run_without_padding_is_the_run_with_it(
    task: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Same rows, same losses at every step, same model; dropout would draw other numbers."""
    encoder = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    off = ("attention_dropout",) if task == "text-generation" else encoder
    plain = make_recipe(task)
    runs = {}
    for wanted in (True, False):
        recipe = make_recipe(
            task,
            {"output_dir": str(tmp_path / str(wanted)), "max_steps": 6, **SGD},
            data={"path": plain.data.path, "padding_free": wanted},
            model={"path": plain.model.path, "config": dict.fromkeys(off, 0.0)},
        )
        run = hftune.train(recipe)
        lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
        assert run.model.config._attn_implementation == "sdpa"
        runs[wanted] = run, [line["loss"] for line in lines if "loss" in line]
    assert runs[True][1] == pytest.approx(runs[False][1], abs=1e-5)
    assert runs[True][0].metrics["train_padding_share"] > 0
    one, other = (dict(run.model.named_parameters()) for run, _ in runs.values())
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("task", "sections", "says"),
    [
        ("text2text-generation", {}, ".* looks at an encoder"),
        ("text-classification", {"training": {"torch_compile": True}}, "a compiled model"),
        ("text-classification", {"regularization": {"drop_path": 0.1}}, "drop_path leaves out"),
    ],
)
def test_padding_that_cannot_be_spared_is_an_error_only_if_asked_for(
    task: str, sections: dict, says: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    data = {"path": make_recipe(task).data.path, "padding_free": True}
    with pytest.raises(HftuneError, match=f"data.padding_free: {says}"):
        hftune.train(make_recipe(task, data=data, **sections))
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
