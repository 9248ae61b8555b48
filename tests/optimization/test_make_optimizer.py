# SPDX-License-Identifier: Apache-2.0
"""Each optimizer against its formula, by itself and through the Trainer."""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers import trainer_optimizer as theirs
from transformers.optimization import Adafactor
from transformers.training_args import OptimizerNames

import hftune
from hftune import Recipe, RecipeError
from hftune.optimization.make_optimizer import OptimizerChoice, class_and_options
from hftune.optimization.optimizers import ADAM, OPTIMIZERS
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from hftune.training.plan.remarks import remarks

OURS = [name for name, row in OPTIMIZERS.items() if row.target is not None]
TAKES_A_MATRIX = {"muon", "sparse_adam"}
RATE, DECAY, B1, B2, EPS = 0.1, 0.01, 0.9, 0.999, 1e-8
START = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)


def arguments(tmp_path: Any, optim: str = "sgd", **more: Any) -> TrainingArguments:
    placeholder = optim if optim in {item.value for item in OptimizerNames} else "sgd"
    return TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, learning_rate=RATE, optim=placeholder, **more
    )


def stepped(
    tmp_path: Any, name: str, args: str | None = None, steps: int = 3, **training: Any
) -> list[Tensor]:
    """The weights after each step on ``sum(h w^2) / 2``, in fp64."""
    curvature = torch.tensor([[1.0, 3.0, 0.2]], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    model.weight.data.copy_(START)
    given = arguments(tmp_path, name, optim_args=args, **training)
    kind, options = class_and_options(
        OptimizerChoice(name=name, args=args), given, model, {"weight"}
    )
    groups = options.pop("params", [{"params": [model.weight], "weight_decay": given.weight_decay}])
    optimizer = kind(groups, **options)
    seen = []
    for _ in range(steps):
        loss = (curvature * model.weight**2).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(model.weight.detach().clone())
    return seen


def by_formula(update: Callable[[int, Tensor, Tensor, dict[str, Tensor]], Tensor]) -> list[Tensor]:
    """Three steps of a rule ``w, g, state -> w`` on the same function."""
    curvature = torch.tensor([[1.0, 3.0, 0.2]], dtype=torch.float64)
    weight, state, seen = START.clone(), {}, []
    for step in range(1, 4):
        weight = update(step, weight, curvature * weight, state)
        seen.append(weight)
    return seen


def moments(step: int, g: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Adam's bias-corrected moments."""
    state["m"] = B1 * state.get("m", torch.zeros_like(g)) + (1 - B1) * g
    state["v"] = B2 * state.get("v", torch.zeros_like(g)) + (1 - B2) * g * g
    return state["m"] / (1 - B1**step), state["v"] / (1 - B2**step)


def sgd(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    return w - RATE * (g + DECAY * w)


def momentum(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    g = g + DECAY * w
    state["b"] = 0.9 * state["b"] + g if state else g
    return w - RATE * state["b"]


def nesterov(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    g = g + DECAY * w
    state["b"] = 0.9 * state["b"] + g if state else g
    return w - RATE * (g + 0.9 * state["b"])


def adagrad(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    g = g + DECAY * w
    state["s"] = state.get("s", torch.zeros_like(g)) + g * g
    return w - RATE * g / (state["s"].sqrt() + 1e-10)


def rmsprop(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    g = g + DECAY * w
    state["s"] = 0.99 * state.get("s", torch.zeros_like(g)) + 0.01 * g * g
    return w - RATE * g / (state["s"].sqrt() + 1e-8)


def adam(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    m, v = moments(step, g + DECAY * w, state)
    return w - RATE * m / (v.sqrt() + EPS)


def adamw(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    m, v = moments(step, g, state)
    return w * (1 - RATE * DECAY) - RATE * m / (v.sqrt() + EPS)


def amsgrad(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    m, _ = moments(step, g + DECAY * w, state)
    state["top"] = torch.maximum(state.get("top", torch.zeros_like(g)), state["v"])
    return w - RATE * m / ((state["top"] / (1 - B2**step)).sqrt() + EPS)


def nadam(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    g = g + DECAY * w
    _, v = moments(step, g, state)
    mu = B1 * (1 - 0.5 * 0.96 ** (step * 0.004))
    after = B1 * (1 - 0.5 * 0.96 ** ((step + 1) * 0.004))
    state["mu"] = state.get("mu", torch.ones(())) * mu
    ahead = (1 - mu) * g / (1 - state["mu"]) + after * state["m"] / (1 - state["mu"] * after)
    return w - RATE * ahead / (v.sqrt() + EPS)


def radam(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The first five steps are not rectified: the variance is not tractable yet."""
    m, _ = moments(step, g + DECAY * w, state)
    rho = 2 / (1 - B2) - 1 - 2 * step * B2**step / (1 - B2**step)
    assert rho <= 5
    return w - RATE * m


def adadelta(step: int, w: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    g = g + DECAY * w
    zero = torch.zeros_like(g)
    state["g"] = 0.9 * state.get("g", zero) + 0.1 * g * g
    delta = g * (state.get("d", zero) + 1e-6).sqrt() / (state["g"] + 1e-6).sqrt()
    state["d"] = 0.9 * state.get("d", zero) + 0.1 * delta * delta
    return w - RATE * delta


FORMULAS = {
    "sgd": (sgd, None),
    "sgd with momentum": (momentum, "momentum=0.9"),
    "nesterov": (nesterov, None),
    "adagrad": (adagrad, None),
    "rmsprop": (rmsprop, None),
    "adam": (adam, None),
    "adamw_torch": (adamw, None),
    "amsgrad": (amsgrad, None),
    "nadam": (nadam, None),
    "radam": (radam, None),
    "adadelta": (adadelta, None),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_three_steps_are_those_of_the_formula(case: str, tmp_path: Any) -> None:
    update, args = FORMULAS[case]
    extra = "rho=0.9" if case == "adadelta" else args
    actual = stepped(tmp_path, case.split(maxsplit=1)[0], extra, weight_decay=DECAY)
    exact = 1e-8 if case == "nadam" else 1e-12  # torch keeps the product of its mu in float32
    torch.testing.assert_close(
        torch.stack(actual), torch.stack(by_formula(update)), atol=exact, rtol=0
    )


def test_weight_decay_without_a_gradient(tmp_path: Any) -> None:
    """AdamW shrinks by ``1 - rate * decay``; SGD's L2 of 0.1 makes 0.9 of 1 at rate 1."""
    for name, shrunk in (("adamw_torch", 1 - RATE * 0.1), ("sgd", 1 - RATE * 0.1)):
        weight = nn.Parameter(torch.ones(1, 1))
        model = nn.Module()
        model.weight = weight
        given = arguments(tmp_path, name, weight_decay=0.1)
        kind, options = class_and_options(OptimizerChoice(name=name), given, model, {"weight"})
        options["params"] = [{"params": [weight], "weight_decay": 0.1}]
        optimizer = kind(**options)
        weight.grad = torch.zeros(1, 1)
        optimizer.step()
        assert weight.item() == pytest.approx(shrunk, abs=1e-7)


def test_nadam_is_torchs_and_not_the_simplified_form(tmp_path: Any) -> None:
    """100 steps on x^2 from 1 at rate 1e-3 end at .9054112, where the form without the momentum
    schedule would end at .8991440."""
    weight = nn.Parameter(torch.ones(1))
    model = nn.Module()
    model.weight = weight
    given = arguments(tmp_path, "nadam")
    given.learning_rate = 1e-3
    given.weight_decay = 0.0
    kind, options = class_and_options(OptimizerChoice(name="nadam"), given, model, set())
    optimizer = kind(**options)
    for _ in range(100):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert weight.item() == pytest.approx(0.9054112, abs=1e-6)


def test_rprop_sees_signs_alone(tmp_path: Any) -> None:
    """A sign that flips halves the step; ten times the loss changes nothing."""
    paths = []
    for scale in (1.0, 10.0):
        weight = nn.Parameter(torch.tensor([0.04]))
        model = nn.Module()
        model.weight = weight
        kind, options = class_and_options(
            OptimizerChoice(name="rprop"), arguments(tmp_path, "rprop"), model, set()
        )
        optimizer, path = kind(**options), []
        for _ in range(6):
            optimizer.zero_grad()
            (scale * weight**2).sum().backward()
            optimizer.step()
            path.append(weight.item())
        paths.append(path)
        assert optimizer.state[weight]["step_size"].item() < RATE
    assert paths[0] == paths[1]
    assert paths[0][:3] == pytest.approx([0.04 - 0.1, -0.06, -0.06 + 0.05], abs=1e-6)


def test_amsgrad_never_forgets_the_largest(tmp_path: Any) -> None:
    weight = nn.Parameter(torch.ones(1))
    model = nn.Module()
    model.weight = weight
    kind, options = class_and_options(
        OptimizerChoice(name="amsgrad"), arguments(tmp_path, "amsgrad"), model, set()
    )
    optimizer, tops = kind(**options), []
    for gradient in (10.0, 1.0, 0.1, 0.0, 20.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        tops.append(optimizer.state[weight]["max_exp_avg_sq"].item())
    assert tops == sorted(tops)


def test_adafactor_takes_what_transformers_leaves_out(tmp_path: Any) -> None:
    args = "clip_threshold=0.5,decay_rate=-0.7,beta1=0.9,scale_parameter=true"
    given = arguments(tmp_path, "adafactor", optim_args=args)
    kind, options = class_and_options(
        OptimizerChoice(name="adafactor", args=args), given, nn.Linear(2, 2), set()
    )
    groups = kind(**options).param_groups
    assert kind is Adafactor
    assert {key: groups[0][key] for key in ("clip_threshold", "decay_rate", "beta1")} == {
        "clip_threshold": 0.5, "decay_rate": -0.7, "beta1": 0.9,
    }  # fmt: skip
    assert groups[0]["scale_parameter"] is True


@pytest.mark.parametrize("name", [item.value for item in OptimizerNames])
def test_the_table_has_what_transformers_reads(name: str) -> None:
    """Names out of the source of Transformers' own handler, as it is installed."""
    source = inspect.getsource(theirs._OPTIMIZER_HANDLERS[name])
    if name.startswith(("ademamix", "paged_ademamix")):
        source = source[source.index('"ademamix" in') : source.index("bnb_kwargs")]
    elif theirs._OPTIMIZER_HANDLERS[name] is theirs._get_bitsandbytes_optimizer:
        source = ""  # rmsprop_bnb's are those of the class, adamw's and lion's are none
    read = set(re.findall(r'optim_args\.(?:get|pop)\(\s*"(\w+)"', source))
    read |= set(re.findall(r'"(\w+)" in ctx\.optim_args', source))
    for names in re.findall(r"for key in \((.*?)\)", source):
        read |= set(re.findall(r'"(\w+)"', names))
    row = OPTIMIZERS[name]
    assert read - {"weight_decay"} == set(row.args) - (set(row.handed) - read)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, row in OPTIMIZERS.items()
        if row.target is None and row.package in (None, "bitsandbytes")
    ],
)
def test_the_table_has_the_fields_that_transformers_reads(name: str, tmp_path: Any) -> None:
    usual = str(Trainer.get_optimizer_cls_and_kwargs(arguments(tmp_path, name)))
    for field in ADAM:
        changed = Trainer.get_optimizer_cls_and_kwargs(arguments(tmp_path, name, **{field: 0.5}))
        assert (str(changed) != usual) == (field in OPTIMIZERS[name].reads), field


@pytest.mark.parametrize("name", [n for n, row in OPTIMIZERS.items() if n in OURS])
def test_own_options_are_those_of_the_class(name: str) -> None:
    from hftune.core.registry import named

    row = OPTIMIZERS[name]
    known = set(inspect.signature(named(row.target)).parameters)
    assert {*row.args, *row.settings} <= known
    assert ("betas" in known) == bool(row.reads)
    assert set(row.reads) <= set(ADAM)
    assert row.rest_reads == (() if row.first_part is None else ADAM)
    assert row.decays == ("weight_decay" in known or name == "sparse_adam")


def states() -> Iterator[tuple[str, str | None]]:
    """Yield each optimizer that runs here, alone and with each option that adds to its state."""
    needed = {"lbfgs": "history_size=3", "asgd": "t0=0"}
    values = {"momentum": "0.9", "beta1": "0.9"}
    for name, row in OPTIMIZERS.items():
        ours = row.target is not None and name not in TAKES_A_MATRIX
        if ours or (row.package is None and row.state_options):
            yield name, needed.get(name)
            for option in row.state_options:
                yield name, f"{option}={values.get(option, 'true')}"


@pytest.mark.parametrize(("name", "args"), [*states(), ("adagrad", None)])
def test_state_bytes_are_what_the_state_holds(name: str, args: str | None, tmp_path: Any) -> None:
    model = nn.Linear(64, 64, bias=False)
    given = arguments(tmp_path, name, optim_args=args)
    kind, options = class_and_options(
        OptimizerChoice(name=name, args=args), given, model, {"weight"}
    )
    optimizer = kind(options.pop("params", [model.weight]), **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model.weight**4).sum()
        loss.backward()
        return loss

    for _ in range(4):
        closure()
        optimizer.step(closure) if name == "lbfgs" else optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values()]
    held = [tensor for value in held for tensor in (value if isinstance(value, list) else [value])]
    whole = sum(t.nbytes for t in held if isinstance(t, Tensor) and t.numel() == 64 * 64)
    claimed = OptimizerChoice(name=name, args=args).state_bytes
    if name == "adafactor":  # a row and a column of second moments in place of a whole matrix
        claimed -= OPTIMIZERS[name].state_bytes
    if name == "lbfgs":  # a direction and a gradient beside the history
        assert 0 <= whole / 64**2 - claimed <= 8
    else:
        assert whole / 64**2 == claimed


RATES = {"adadelta": 1.0, "lbfgs": 1.0, "rprop": 1e-3}


@pytest.mark.parametrize("name", OURS)
def test_the_trainer_steps_with_it(name: str, make_recipe: Callable[..., Recipe]) -> None:
    training: dict[str, Any] = {"optim": name, "max_steps": 4, "eval_strategy": "no",
                                "save_strategy": "no", "per_device_train_batch_size": 64,
                                "warmup_steps": 0, "lr_scheduler_type": "constant",
                                "learning_rate": RATES.get(name, 1e-2)}  # fmt: skip
    if name == "asgd":
        training["optim_args"] = "t0=2"
    recipe = make_recipe(training=training)
    plan = prepare(recipe)
    trainer = build_trainer(plan, load_model(plan))
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    assert all(map(math.isfinite, losses))
    optimizer = trainer.optimizer.optimizer
    stepped_by = {p for group in optimizer.param_groups for p in group["params"]}
    assert stepped_by == {p for p in trainer.model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "name", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"]
)
def test_schedule_free_warms_up_in_steps(name: str, make_recipe: Callable[..., Recipe]) -> None:
    """A fifth of ten steps is two, where Transformers would hand over 0.2: a first rate of five
    times the highest. Evaluated and saved are the averaged weights, which the optimizer puts in."""
    training = {"optim": name, "max_steps": 10, "warmup_steps": 0.2, "learning_rate": 1e-3,
                "eval_strategy": "no", "save_strategy": "no"}  # fmt: skip
    plan = prepare(make_recipe(training=training))
    trainer = build_trainer(plan, load_model(plan))
    group = trainer.create_optimizer().param_groups[0]
    if name != "schedule_free_radam":  # it has a warmup by nature
        assert group["warmup_steps"] == 2
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr_max"] <= 1e-3 * (1 + 1e-9)
    assert trainer.optimizer.param_groups[0]["train_mode"] is False


def test_schedule_free_with_a_best_checkpoint(make_recipe: Callable[..., Recipe]) -> None:
    """Two steps behind the last evaluation the best checkpoint is taken, and stays as it was."""
    training = {"optim": "schedule_free_adamw", "max_steps": 6, "learning_rate": 0.1,
                "eval_strategy": "steps", "eval_steps": 4,
                "metric_for_best_model": "loss"}  # fmt: skip
    run = hftune.train(make_recipe(training=training))
    lines = map(json.loads, (run.path / "log.jsonl").read_text().splitlines())
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert run.metrics["eval_loss"] == pytest.approx(losses[0], abs=1e-6)


def test_norms_and_biases_do_not_decay(make_recipe: Callable[..., Recipe]) -> None:
    for name in ("adamw_torch", "adam"):
        recipe = make_recipe(training={"optim": name, "weight_decay": 0.1})
        plan = prepare(recipe)
        trainer = build_trainer(plan, load_model(plan))
        optimizer = trainer.create_optimizer()
        names = {id(p): n for n, p in trainer.model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                spared = "bias" in names[id(parameter)] or "LayerNorm" in names[id(parameter)]
                assert group["weight_decay"] == (0.0 if spared else 0.1), names[id(parameter)]


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "Nesterov momentum requires a momentum"),
        ({"optim": "nesterov", "optim_args": "dampening=0.5"}, "nesterov takes no dampening"),
        (
            {"optim": "lbfgs", "optim_args": "line_search_fn=wolfe"},
            "'wolfe' is not allowed",
        ),
    ],
)
def test_options_that_the_class_refuses(
    training: dict[str, Any], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=says):
        prepare(make_recipe(training=training))


def test_full_batch_optimizers_warn_of_batches(make_recipe: Callable[..., Recipe]) -> None:
    for name in ("rprop", "lbfgs"):
        plans = [prepare(make_recipe(training={"optim": name, "per_device_train_batch_size": n}))
                 for n in (8, 64)]  # fmt: skip
        said = [[r for r in remarks(plan) if r.startswith(name)] for plan in plans]
        assert len(said[0]) == 1
        assert "put all rows into one batch" in said[0][0]
        assert said[1] == []


def test_what_transformers_makes_is_left_to_it(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe())
    trainer = build_trainer(plan, load_model(plan))
    optimizer = trainer.create_optimizer()
    assert trainer.optimizer_cls_and_kwargs is None
    assert type(optimizer) is Trainer.get_optimizer_cls_and_kwargs(plan.settings.arguments)[0]
