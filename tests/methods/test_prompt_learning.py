# SPDX-License-Identifier: Apache-2.0
"""Virtual tokens: their number by the papers' formulas, where they reach, how they start."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hftune
from hftune import HftuneError, Recipe, RecipeError, Run
from hftune.methods.prompt_learning.method import PromptLearning
from hftune.training.load_model import load_model, parameter_counts
from hftune.training.plan.prepare import prepare
from tests.stop_at import StopAt

pytestmark = pytest.mark.filterwarnings("ignore:for MLP:UserWarning")
TEXT = {"name": "prompt_tuning", "prompt_tuning_init": "TEXT"}
#: The tiny models: virtual tokens, layers, width of the encoder and T5, width of the decoder.
N, LAYERS, ENCODER, DECODER = 5, 2, 32, 64
#: Of the classifier of three labels on the encoder.
HEAD = ENCODER * 3 + 3


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def lstm(inputs: int, hidden: int, layers: int) -> int:
    """Two directions; four gates, each with a weight for input and state and PyTorch's two biases.

    The layers after the first read both directions.
    """
    widths = [inputs, *[2 * hidden] * (layers - 1)]
    return sum(2 * 4 * hidden * (width + hidden + 2) for width in widths)


@pytest.mark.parametrize(
    ("task", "method", "due"),
    [
        ("text-classification", {"name": "prompt_tuning"}, N * ENCODER + HEAD),
        ("text2text-generation", {"name": "prompt_tuning"}, N * ENCODER),
        (  # P-tuning, with PEFT's three linear layers
            "text-classification",
            {"name": "p_tuning", "encoder_hidden_size": 12},
            N * ENCODER + linear(ENCODER, 12) + linear(12, 12) + linear(12, ENCODER) + HEAD,
        ),
        (  # P-tuning as its paper has it: a bidirectional LSTM of two layers, then two linear ones
            "text-generation",
            {"name": "p_tuning", "encoder_reparameterization_type": "LSTM",
             "encoder_hidden_size": 12},
            N * DECODER + lstm(DECODER, 12, 2) + linear(24, 24) + linear(24, DECODER),
        ),
        (  # P-tuning v2: a key and a value in every layer, and a head
            "text-classification",
            {"name": "prefix_tuning"},
            N * 2 * LAYERS * ENCODER + HEAD,
        ),
        ("token-classification", {"name": "prefix_tuning"}, N * 2 * LAYERS * ENCODER + HEAD),
        (  # Prefix tuning as its paper has it: through a network with one hidden layer
            "text-generation",
            {"name": "prefix_tuning", "prefix_projection": True, "encoder_hidden_size": 12},
            N * DECODER + linear(DECODER, 12) + linear(12, 2 * LAYERS * DECODER),
        ),
        ("text2text-generation", {"name": "prefix_tuning"}, N * 2 * LAYERS * ENCODER),
    ],
)  # fmt: skip
def test_as_many_parameters_train_as_the_formulas_say(
    task: str, method: dict[str, Any], due: int, make_recipe: Callable[..., Recipe]
) -> None:
    plan = prepare(make_recipe(task, method={**method, "num_virtual_tokens": N}))
    assert parameter_counts(plan.objective.meta_model)["trainable_parameters"] == due
    assert parameter_counts(load_model(plan).model)["trainable_parameters"] == due


def gradient(name: str, make_recipe: Callable[..., Recipe]) -> torch.Tensor:
    """The gradient of the virtual tokens' embedding."""
    plan = prepare(make_recipe(method={"name": name, "num_virtual_tokens": N}))
    model = load_model(plan).model.eval()
    batch = plan.objective.task.collator(plan.pretrained.processor, model)(
        [plan.splits.train.dataset[i] for i in range(4)]
    )
    model(**batch).loss.backward()
    weight = next(value for key, value in model.named_parameters() if "prompt_encoder" in key)
    assert weight.grad is not None
    return weight.grad


def test_a_prefix_reaches_keys_and_values_of_every_layer(
    make_recipe: Callable[..., Recipe],
) -> None:
    """A deep prompt, as in P-tuning v2, where prompt tuning stands in the input alone."""
    prefix = gradient("prefix_tuning", make_recipe)
    parts = prefix.view(N, 2 * LAYERS, ENCODER).abs().amax(dim=(0, 2))
    assert (parts > 1e-6).all()
    prompt = gradient("prompt_tuning", make_recipe)
    assert prompt.shape == (N, ENCODER)
    assert (prompt.abs().amax(1) > 1e-6).all()


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_a_prompt_starts_from_the_embeddings_of_its_text(
    task: str, make_recipe: Callable[..., Recipe]
) -> None:
    """The ids are the tokenizer's own, special ones too, and repeated until all are filled."""
    text = "red one" if task == "text-classification" else "Be brief"
    method = {**TEXT, "num_virtual_tokens": 18, "prompt_tuning_init_text": text}
    plan = prepare(make_recipe(task, method=method))
    model: Any = load_model(plan).model
    ids = plan.pretrained.processor(text)["input_ids"]
    words = model.get_base_model().get_input_embeddings().weight
    prompt = model.prompt_encoder["default"].embedding.weight
    assert len(ids) == (4 if task == "text-classification" else 8)
    assert torch.equal(prompt[: len(ids)], words[ids])
    assert torch.equal(prompt, words[(ids * 18)[:18]])


def test_a_run_that_started_from_text_loads_again(make_recipe: Callable[..., Recipe]) -> None:
    method = {**TEXT, "num_virtual_tokens": 4, "prompt_tuning_init_text": "red one"}
    run = hftune.train(make_recipe(method=method, training={"learning_rate": 0.1}))
    ids = torch.tensor([[2, 6, 7, 8, 3]])
    with torch.no_grad():
        expected, actual = run.model(input_ids=ids), Run(run.path).model(input_ids=ids)
    torch.testing.assert_close(actual.logits, expected.logits)


NETWORKS = [
    {"name": "p_tuning", "encoder_reparameterization_type": "LSTM"},
    {"name": "prefix_tuning", "prefix_projection": True},
]


@pytest.mark.parametrize("method", NETWORKS)
def test_a_checkpoint_has_the_network_that_makes_the_tokens(
    method: dict[str, Any], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """PEFT saves the tokens alone. The best model is the first here, and a resume is exact."""
    training = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.05,
                "lr_scheduler_type": "constant", "warmup_steps": 0,
                "metric_for_best_model": "loss"}  # fmt: skip
    whole = hftune.train(make_recipe(training=training, method=method))
    lines = [json.loads(line) for line in (whole.path / "log.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert whole.metrics["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert max(losses) > 1.1 * min(losses)

    training |= {"output_dir": str(tmp_path / "stopped"), "save_total_limit": 4}
    with pytest.raises(KeyboardInterrupt):
        hftune.train(make_recipe(training=training, method=method), callbacks=[StopAt(3)])
    resumed = hftune.train(Run(tmp_path / "stopped").recipe, resume=True)
    files = [load_file(run.model_path / "adapter_model.safetensors") for run in (whole, resumed)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_a_revision_is_the_tokenizers_too(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(method={**TEXT, "prompt_tuning_init_text": "red"})
    plan = prepare(recipe)
    assert isinstance(plan.objective.method, PromptLearning)
    config: Any = plan.objective.method.config(dataclasses.replace(plan.context(), revision="abc"))
    assert config.tokenizer_kwargs == {"revision": "abc"}
    assert config.tokenizer_name_or_path == recipe.model.path


def test_a_text_that_is_too_long_shows_before_the_weights(
    make_recipe: Callable[..., Recipe],
) -> None:
    method = {**TEXT, "num_virtual_tokens": 4, "prompt_tuning_init_text": "red one two"}
    with pytest.raises(HftuneError, match="it has 5 tokens, and there are 4") as caught:
        prepare(make_recipe(method=method))
    assert caught.value.hint == "shorten it, or take num_virtual_tokens: 5"


def test_a_short_text_is_said(
    make_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(make_recipe(method={**TEXT, "prompt_tuning_init_text": "red"}))
    assert "starts from 3 tokens of text, repeated to fill 20" in capsys.readouterr().err


LSTM_ALONE = "are those of an LSTM"


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (TEXT, "give one that is not empty"),
        ({**TEXT, "prompt_tuning_init_text": " "}, "give one that is not empty"),
        ({"name": "prompt_tuning", "prompt_tuning_init_text": "red"}, "only with prompt_tuning_in"),
        ({**TEXT, "prompt_tuning_init_text": "red", "tokenizer_name_or_path": "x"}, "own tokenize"),
        ({"name": "prompt_tuning", "prompt_tuning_init": "TXT"}, "'TXT' is not allowed.*TEXT"),
        ({"name": "p_tuning", "encoder_reparameterization_type": "GRU"}, "'GRU' is not allowed"),
        ({"name": "p_tuning", "encoder_num_layers": 3}, LSTM_ALONE),
        ({"name": "p_tuning", "encoder_dropout": 0.1}, LSTM_ALONE),
        ({"name": "prefix_tuning", "encoder_hidden_size": 64}, "which prefix_projection: true mak"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(
    method: dict[str, Any], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(method=method)


def test_a_resolved_recipe_is_accepted_again(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """It spells out the defaults of PEFT."""
    for name in ("prompt_tuning", "p_tuning", "prefix_tuning", "adalora"):
        (tmp_path / "recipe.yaml").write_text(make_recipe(method=name).to_yaml())
        assert Recipe.load(tmp_path / "recipe.yaml").method.name == name


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning"])
def test_the_head_of_a_decoder_would_read_padding(
    name: str, make_recipe: Callable[..., Recipe]
) -> None:
    decoder = make_recipe("text-generation").model.path
    with pytest.raises(HftuneError, match="head of a decoder would read padding"):
        prepare(make_recipe(model={"path": decoder}, method=name))


INNER = {"name": "adaption_prompt", "adapter_len": 3, "adapter_layers": LAYERS}


@pytest.mark.parametrize("kind", ["neftune", "adversarial", "distillation"])
def test_prompts_inside_attention_stand_before_no_row(
    kind: str, make_recipe: Callable[..., Recipe], tmp_path: Path, tiny_decoder: Path
) -> None:
    """Rows keep their length: the first loss is that of lora, which begins at the base, too."""
    training: dict[str, Any] = {"max_steps": 1, "logging_steps": 1}
    sections: dict[str, dict[str, Any]] = {
        "plain": {},
        "neftune": {"training": {"neftune_noise_alpha": 50.0, **training}},
        "adversarial": {"regularization": {"adversarial": 1.0}},
        "distillation": {
            "distillation": {"teacher": str(tiny_decoder), "hidden_states": {0: 1, 2: 0}}
        },
    }

    def first_loss(method: dict[str, Any], given: dict[str, Any]) -> float:
        folder = tmp_path / f"{method['name']}-{len(list(tmp_path.iterdir()))}"
        given = {"training": training, **given}
        given["training"] = {**given["training"], "output_dir": str(folder)}
        run = hftune.train(make_recipe("text-generation", method=method, **given))
        loss: float = json.loads((run.path / "log.jsonl").read_text().splitlines()[0])["loss"]
        return loss

    found = first_loss(INNER, sections[kind])
    assert found == first_loss({"name": "lora"}, sections[kind])
    assert found != first_loss(INNER, sections["plain"])


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"training": {"neftune_noise_alpha": 5.0}}, "training.neftune_noise_alpha"),
        ({"regularization": {"adversarial": 1.0}}, "regularization.adversarial"),
        ({"distillation": {"teacher": "t", "hidden_states": {0: 0}}}, "distillation.hidden_states"),
        ({"model": {"path": "x", "classifier_pooling": "mean"}}, "model.classifier_pooling"),
    ],
)
def test_virtual_tokens_before_a_row_are_refused_alike(
    method: str, sections: dict[str, Any], key: str
) -> None:
    whole = {"task": "text-classification", "model": "x", "data": "x", **sections}
    with pytest.raises(RecipeError, match=f"{key}: .*virtual tokens"):
        Recipe(**whole, method=method)
