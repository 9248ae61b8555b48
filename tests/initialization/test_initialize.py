# SPDX-License-Identifier: Apache-2.0
"""What is new is drawn as the recipe says; every other weight keeps each bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hftune import HftuneError, Recipe, RecipeError
from hftune.core.errors import RunError
from hftune.initialization.initialize import InitializationContext, initialize
from hftune.initialization.section import InitializationSection
from hftune.training.load_model import LSUV_ROWS, load_model
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare

SEED = 42  # hftune's default
HEAD = "classifier.weight"

Make = Callable[..., Recipe]


def built(make_recipe: Make, initialization: Any, **sections: Any) -> tuple[Plan, nn.Module]:
    plan = prepare(make_recipe(initialization=initialization, **sections))
    return plan, load_model(plan).model


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, p in after.named_parameters() if not torch.equal(p, old[name])}


@pytest.fixture
def plain(make_recipe: Make) -> nn.Module:
    return load_model(prepare(make_recipe())).model


def test_only_the_head_is_drawn_and_by_the_seed(make_recipe: Make, plain: nn.Module) -> None:
    _, model = built(make_recipe, "xavier_uniform")
    assert changed(plain, model) == {HEAD}
    torch.manual_seed(SEED)
    expected = nn.init.xavier_uniform_(torch.empty(3, 32))
    assert torch.equal(model.get_parameter(HEAD), expected)
    _, other = built(make_recipe, "xavier_uniform", training={"seed": 1})
    assert not torch.equal(other.get_parameter(HEAD), expected)


@pytest.mark.parametrize("scheme", ["orthogonal", "zeros"])
def test_an_adapter_begins_as_without(scheme: str, make_recipe: Make) -> None:
    """The draws, however many, take nothing from the generator that the method draws from."""
    _, plain = built(make_recipe, {}, method="lora")
    _, model = built(make_recipe, scheme, method="lora")
    assert {name.split(".")[-2:][0] for name in changed(plain, model)} <= {"default", "classifier",
        "original_module"}  # fmt: skip
    assert all("classifier" in name for name in changed(plain, model))


def test_the_first_rule_that_fits_counts(make_recipe: Make, plain: nn.Module) -> None:
    rules = [
        {"params": r".*\.bias", "name": "constant", "val": 0.1},
        {"params": ["classifier"], "name": "zeros"},
    ]
    _, model = built(make_recipe, {"rules": rules})
    assert changed(plain, model) == {HEAD, "classifier.bias"}
    assert torch.equal(model.get_parameter(HEAD), torch.zeros(3, 32))
    assert torch.equal(model.get_parameter("classifier.bias"), torch.full((3,), 0.1))


def test_prior_on_the_head(make_recipe: Make) -> None:
    """With a head that says nothing yet, the first loss is the entropy of the labels."""
    rules = [{"params": ["classifier.bias"], "name": "prior"}]
    plan, model = built(make_recipe, {"name": "zeros", "rules": rules})
    shares = torch.tensor(plan.class_counts()) / plan.splits.train.num_rows
    torch.testing.assert_close(model.get_parameter("classifier.bias").softmax(-1), shares.float())


def test_top_layers_are_drawn_as_the_model_draws_new_ones(
    make_recipe: Make, plain: nn.Module
) -> None:
    _, model = built(make_recipe, {"reinit_top_layers": 1})
    top = "bert.encoder.layer.1."
    differ = changed(plain, model)
    assert differ
    assert all(name.startswith(top) for name in differ)
    assert {
        name for name, p in model.named_parameters() if name.startswith(top) and p.ndim > 1
    } <= (differ)
    torch.manual_seed(SEED)
    for part in model.get_submodule(top[:-1]).modules():
        if isinstance(part, nn.Linear):  # initializer_range of the tiny model is 0.2
            assert torch.equal(part.weight, nn.init.normal_(torch.empty_like(part.weight), std=0.2))
            assert not part.bias.any()
        elif isinstance(part, nn.LayerNorm):
            assert torch.equal(part.weight, torch.ones(32))
            assert not part.bias.any()


def test_what_the_models_code_passes_over_is_named(plain: nn.Module) -> None:
    """It would keep its pretrained values, or whatever was in memory."""
    model: Any = plain
    model.bert.encoder.layer[1].own_scale = nn.Parameter(torch.ones(3))
    section = InitializationSection(reinit_top_layers=1)
    context = InitializationContext(seed=0, counts=None, batch=dict)
    with pytest.raises(RunError, match=r"does not draw bert\.encoder\.layer\.1\.own_scale"):
        initialize(model, [], section, context)


def test_modules_and_schemes_for_them(make_recipe: Make, plain: nn.Module) -> None:
    given = {"name": "orthogonal", "reinit_top_layers": 1, "reinit_modules": ["layer.1", "pooler"]}
    _, model = built(make_recipe, given)
    tops = ("bert.encoder.layer.1.", "bert.pooler.", "classifier.")
    assert all(name.startswith(tops) for name in changed(plain, model))
    for name, parameter in model.named_parameters():
        if name.startswith(tops) and parameter.ndim == 2:
            short = parameter if len(parameter) <= len(parameter.T) else parameter.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)


def test_what_is_drawn_anew_trains_below_a_freeze(make_recipe: Make) -> None:
    method = {"name": "freeze", "freeze_layers": "0-1"}
    _, model = built(make_recipe, {"reinit_top_layers": 1}, method=method)
    for name, parameter in model.named_parameters():
        if "layer." in name:
            assert parameter.requires_grad == ("layer.1." in name)


def test_lsuv_on_the_first_rows(make_recipe: Make) -> None:
    plan, model = built(make_recipe, {"name": "lsuv", "reinit_top_layers": 1})
    variances: dict[str, float] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            variances[name] = float(output.var())

        return hook

    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and name.startswith(("bert.encoder.layer.1.", "classifier")):
            part.register_forward_hook(remember(name))
    rows = [plan.splits.train.dataset[index] for index in range(LSUV_ROWS)]
    batch = plan.objective.task.collator(plan.pretrained.processor, model)(rows)
    with torch.no_grad():
        model.eval()(**{key: value for key, value in batch.items() if key != "labels"})
    assert len(variances) == 7
    assert all(0.9 < variance < 1.1 for variance in variances.values()), variances


def test_the_decoder_has_layers_too(make_recipe: Make) -> None:
    _, model = built(make_recipe, {"reinit_top_layers": 1}, task="text-generation")
    plain = load_model(prepare(make_recipe("text-generation"))).model
    differ = changed(plain, model)
    assert differ
    assert all(name.startswith("model.layers.1.") for name in differ)


def test_the_resolved_recipe_repeats_it(make_recipe: Make, tmp_path: Any) -> None:
    rules = [{"params": ["bias"], "name": "zeros"}]
    recipe = make_recipe(initialization={"name": "normal", "std": 0.1, "rules": rules})
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path).initialization == recipe.initialization
    assert "None" not in recipe.to_yaml()
    short = Recipe.load(path, ["initialization=orthogonal", "initialization.gain=2"])
    assert short.initialization.options == {"gain": 2}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("xavier", r"did you mean xavier_"),
        ({"name": "he_normal"}, "'he_normal' is not allowed"),
        ({"name": "normal", "gain": 2.0}, "gain is an option of xavier_uniform"),
        ({"std": 0.1}, "std is an option of normal, trunc_normal"),
        ({"name": "constant"}, "constant needs its value"),
        ({"name": "uniform", "a": 0.1}, "a, the lower bound, must be below b"),
        ({"name": "trunc_normal", "std": 0.1, "b": -0.3}, "must be below b"),
        ({"name": "kaiming_normal", "a": 0.1, "nonlinearity": "relu"}, "it has no effect"),
        ({"name": "normal", "std": -1}, "above 0"),
        ("prior", "name it in initialization.rules"),
        ({"reinit_top_layers": 0}, "at least 1"),
        ({"rules": [{"params": "x"}]}, r"rules\[0\]\.name: missing"),
    ],
)
def test_what_the_recipe_refuses(given: Any, says: str, make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(initialization=given)


@pytest.mark.parametrize("key", ["reinit_top_layers", "reinit_modules"])
def test_a_frozen_base_is_not_drawn_anew(key: str, make_recipe: Make) -> None:
    given = {"reinit_top_layers": 1, "reinit_modules": ["pooler"]}
    with pytest.raises(RecipeError, match="would stay random"):
        make_recipe(method="lora", initialization={key: given[key]})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"reinit_top_layers": 3}, "reinit_top_layers: 3, and BertForSequenceClassification has 2"),
        ({"reinit_modules": ["poler"]}, "'poler' fits nothing"),
        ({"reinit_modules": r".*query\.bias"}, "means parameters and no module"),
        ({"rules": [{"params": ["scorer"], "name": "zeros"}]}, "'scorer' fits nothing"),
        ({"rules": [{"params": ["classifier.bias"], "name": "orthogonal"}]}, "two dimensions"),
        ({"rules": [{"params": ["classifier"], "name": "prior"}]}, "a vector, such as a bias"),
    ],
)
def test_what_does_not_fit_the_model(given: Any, says: str, make_recipe: Make) -> None:
    with pytest.raises(HftuneError, match=says) as caught:
        prepare(make_recipe(initialization=given))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rules": [{"params": ["query"], "name": "zeros"}]}, "the checkpoint has it all"),
        (
            {"rules": [{"params": ["classifier"], "name": "normal"}] * 2},
            r"rules\[1\].*a rule before it",
        ),
        ({"name": "zeros", "rules": [{"params": [HEAD], "name": "normal"}]}, "nothing new to draw"),
        (
            {"reinit_top_layers": 1, "rules": [{"params": ["query.bias"], "name": "prior"}]},
            "not for bert.encoder.layer.1.attention.self.query.bias",
        ),
    ],
)
def test_what_only_the_weights_tell(given: Any, says: str, make_recipe: Make) -> None:
    with pytest.raises(RunError, match=says):
        built(make_recipe, given)


def test_a_model_without_a_new_head(make_recipe: Make) -> None:
    with pytest.raises(RunError, match="xavier_uniform has nothing new to draw"):
        built(make_recipe, "xavier_uniform", task="text-generation")


def test_zeros_one_behind_the_other_are_warned_of(
    make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    built(make_recipe, {"name": "zeros", "reinit_modules": ["pooler"]})
    assert "never learn" in capsys.readouterr().err


def test_a_model_of_ones_own_is_left_alone(make_recipe: Make, plain: nn.Module) -> None:
    with pytest.raises(RecipeError, match="taken as it is"):
        prepare(make_recipe(initialization="zeros"), own_model=plain)
