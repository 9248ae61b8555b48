# SPDX-License-Identifier: Apache-2.0
"""Pruning: the right weights go, stay zero to the bit, and cut models are plain and equal."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    TrainerControl,
    TrainerState,
)
from transformers.pytorch_utils import Conv1D

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.methods.prune.method import Prune, forget_pruned
from hftune.methods.prune.schedule import Sparsities
from hftune.methods.prune.units import FEED_FORWARD, HEADS, unit_layers
from hftune.methods.prune.weights import drop_smallest, keep_two_of_four, prunable_weights
from hftune.tasks.context import RunContext
from hftune.training.checkpoints import latest_checkpoint
from tests.stop_at import StopAt

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 40, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OTHER_NAMES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "dropout": 0.0,
                   "attention_dropout": 0.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "resid_pdrop": 0.0,
             "attn_pdrop": 0.0, "embd_pdrop": 0.0},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "electra": {"embedding_size": 32},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
           "dropout_rate": 0.0},
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
             "decoder_ffn_dim": 64, "dropout": 0.0, "decoder_start_token_id": 0},
}  # fmt: skip
SAME = {"mt5": "t5", "mbart": "bart", "marian": "bart"}
GROUPED = {"num_key_value_heads": 2}
OF_THEIR_OWN_WIDTH = ("gemma", "gemma2", "qwen3")  # the others: hidden_size / heads, also 8


def small_model(kind: str) -> Any:
    """A random model of two layers; keys and values serve two heads each where they can."""
    grouped = GROUPED if kind in HEADS else {}
    if kind in OF_THEIR_OWN_WIDTH:
        grouped = {**grouped, "head_dim": 8}
    config = AutoConfig.for_model(
        kind, **{**SMALL, **grouped, **OTHER_NAMES.get(SAME.get(kind, kind), {})}
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms too, which begin at 0 and 1
        nn.init.normal_(parameter, std=0.3)
    return model


def hidden(model: Any) -> Tensor:
    ids = torch.tensor([[5, 9, 30, 12, 7], [6, 6, 11, 39, 3]])
    more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).last_hidden_state


def context(steps: int = 10) -> RunContext:
    return RunContext(task="text-classification", num_training_steps=steps)


@pytest.mark.parametrize("kind", FEED_FORWARD)
def test_without_neurons_the_model_equals_the_masked_one(kind: str, tmp_path: Path) -> None:
    check_cut(kind, "ffn", 0.25, tmp_path)


@pytest.mark.parametrize("kind", HEADS)
def test_without_heads_the_model_equals_the_masked_one(kind: str, tmp_path: Path) -> None:
    check_cut(kind, "heads", 0.5, tmp_path)


def check_cut(kind: str, structure: str, sparsity: float, folder: Path) -> None:
    method, model = Prune(structure=structure, sparsity=sparsity), small_model(kind)
    whole = hidden(model)
    assert method.check(copy.deepcopy(model).to("meta"), context()) is not None
    model = method.apply(model, context())
    assert len(method.units) == (4 if model.config.is_encoder_decoder else 2)
    method.prune(model, sparsity)
    masked, before = hidden(model), sum(p.numel() for p in model.parameters())
    assert not torch.allclose(masked, whole, atol=1e-2)
    held = sum(
        sum(model.get_parameter(name).numel() for name, _ in layer.parameters(model))
        for layer in method.units
    )
    cut = method.finish(model)
    torch.testing.assert_close(hidden(cut), masked, atol=1e-5, rtol=1e-5)
    assert before - sum(p.numel() for p in cut.parameters()) == held * sparsity
    cut.save_pretrained(folder)
    plain, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(hidden(plain.eval()), masked, atol=1e-5, rtol=1e-5)
    results = method.results(cut, None)
    assert (results["prunable_weights"], results["pruned_weights"]) == (held, held * sparsity)


def test_a_unit_is_its_rows_and_columns() -> None:
    """The weakest of each layer by the norm of everything that belongs to it."""
    model: Any = small_model("bert")
    layer = unit_layers(model, "ffn")[1]
    part = model.encoder.layer[1]
    expected = (
        part.intermediate.dense.weight.square().sum(1)
        + part.intermediate.dense.bias.square()
        + part.output.dense.weight.square().sum(0)
    ).sqrt()
    torch.testing.assert_close(layer.norms(model), expected)
    method = Prune(structure="ffn", sparsity=0.25)
    method.apply(model, context())
    method.prune(model, 0.25)
    gone = part.output.dense.weight.abs().sum(0) == 0
    assert set(gone.nonzero().flatten().tolist()) == set(expected.argsort()[:12].tolist())


def test_effects_are_gradients_of_factors_on_heads() -> None:
    """Michel et al. put a factor of 1 on each head; its gradient is what is gathered."""
    model: Any = small_model("llama")
    layer, attention = unit_layers(model, "heads")[0], model.layers[0].self_attn
    factors = torch.ones(2, requires_grad=True)
    hook = attention.o_proj.register_forward_pre_hook(
        lambda _, args: (args[0] * factors.repeat_interleave(16),)
    )
    ids = torch.tensor([[5, 9, 30, 12, 7]])
    (model(input_ids=ids).last_hidden_state ** 3).sum().backward()
    hook.remove()
    torch.testing.assert_close(layer.effects(model), factors.grad.abs(), rtol=1e-4, atol=1e-4)


def plain_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 8))


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.903])
def test_masks_are_those_of_torch(amount: float) -> None:
    net, theirs = plain_net(), plain_net()
    parts = [(layer, "weight") for layer in theirs]
    torch_prune.global_unstructured(parts, torch_prune.L1Unstructured, amount=amount)
    sizes = [layer.weight.abs().detach() for layer in net]
    ours = drop_smallest(sizes, round(amount * sum(size.numel() for size in sizes)))
    for mask, layer in zip(ours, theirs, strict=True):
        assert torch.equal(mask, layer.weight_mask.bool())

    theirs = plain_net()
    for size, layer in zip(sizes, theirs, strict=True):
        torch_prune.l1_unstructured(layer, "weight", amount=amount)
        (mask,) = drop_smallest([size], round(amount * size.numel()))
        assert torch.equal(mask, layer.weight_mask.bool())


def test_of_equal_scores_exactly_so_many_go() -> None:
    scores = [torch.tensor([1.0, 2, 2]), torch.tensor([[2.0, 2], [3, 0]])]
    for pruned in range(8):
        kept = drop_smallest(scores, pruned)
        assert sum(int(mask.sum()) for mask in kept) == 7 - pruned
    first, second = drop_smallest(scores, 4)
    assert first.tolist() == [False, False, False]
    assert second.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("dim", [0, 1])
def test_two_of_each_four_are_the_largest(dim: int) -> None:
    torch.manual_seed(0)
    scores = torch.rand(8, 12)
    keep = keep_two_of_four(scores, dim)
    rows = zip(*((scores, keep) if dim == 1 else (scores.T, keep.T)), strict=True)
    for values, kept in rows:
        for start in range(0, len(values), 4):
            four = values[start : start + 4].tolist()
            largest = sorted(range(4), key=four.__getitem__)[2:]
            assert kept[start : start + 4].nonzero().flatten().tolist() == sorted(largest)
    assert keep_two_of_four(torch.ones(4, 4), dim).sum() == 8


def test_what_may_be_pruned() -> None:
    bert = AutoModelForSequenceClassification.from_config(small_model("bert").config)
    names = prunable_weights(bert)
    assert len(names) == 2 * 6
    assert not any(word in name for name in names for word in ("embed", "Norm", "pooler", "bias"))
    assert not any(name.startswith("classifier") for name in names)
    assert set(names.values()) == {1}
    only = prunable_weights(bert, ["query", "output.dense"], ["attention.output.dense"])
    assert len(only) == 4
    gpt2 = small_model("gpt2")
    assert set(prunable_weights(gpt2).values()) == {0}
    assert isinstance(gpt2.h[0].mlp.c_fc, Conv1D)


def test_the_cubic_of_zhu_and_gupta() -> None:
    """From step 2 on, every 3 steps until 12: the fractions left are 1, .7, .4, .1 and, last, 0."""
    steps = Sparsities.cubic(0.8, 0.2, 2, 0.6, 3, total=20)
    due = {2: 0.2, 5: 0.8 - 0.6 * 0.7**3, 8: 0.8 - 0.6 * 0.4**3, 11: 0.8 - 0.6 * 0.1**3, 12: 0.8}
    assert [step for step in range(21) if steps.prunes_at(step)] == list(due)
    assert [steps.at(step) for step in due] == pytest.approx(list(due.values()))
    latest = [max((s for s in due if s <= step), default=None) for step in range(21)]
    reached = [0.0 if step is None else due[step] for step in latest]
    assert [steps.reached(step) for step in range(21)] == pytest.approx(reached)
    once = Sparsities.once(0.5, 0.1, 20)
    assert [once.reached(step) for step in (0, 1, 2, 19)] == [0, 0, 0.5, 0.5]
    assert [step for step in range(21) if once.prunes_at(step)] == [2]


def test_an_optimizers_averages_are_forgotten() -> None:
    model = plain_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 12)).sum().backward()
    optimizer.step()
    mask = torch.rand(20, 12) > 0.5
    averages = optimizer.state[model[0].weight]["exp_avg"].clone()
    forget_pruned(model, {"0.weight": mask}, optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], averages * mask)
    assert optimizer.state[model[1].weight]["exp_avg"].count_nonzero() == 160


def test_what_an_optimizer_revives_is_cleared() -> None:
    """As one does that projects its updates, or keeps its averages in 8 bits."""
    model: Any = small_model("bert")
    method = Prune(sparsity=0.5)
    method.apply(model, context())
    state, control = TrainerState(), TrainerControl()
    (callback,) = method.callbacks(model)
    callback.on_train_begin(None, state, control)
    zeros = {name: model.get_parameter(name) == 0 for name in prunable_weights(model)}
    with torch.no_grad():
        for name in zeros:
            model.get_parameter(name).add_(1e-3)
    hidden_states = model(input_ids=torch.tensor([[5, 9]])).last_hidden_state
    hidden_states.sum().backward()
    state.global_step = 1
    callback.on_step_end(None, state, control)
    for name, zero in zeros.items():
        parameter = model.get_parameter(name)
        assert torch.equal(parameter == 0, zero)
        assert parameter.grad[zero].count_nonzero() == 0
        assert parameter.grad[~zero].count_nonzero() > 0
    callback.on_train_end(None, state, control)
    assert callback.hooks == []
    assert Prune().callbacks(model) == []  # a model of one's own comes as it is


def run_for(
    make_recipe: Callable[..., Recipe],
    folder: Path,
    method: dict[str, Any],
    task: str = "text-classification",
    data: dict[str, Any] | None = None,
    **training: Any,
) -> Recipe:
    training = {
        "output_dir": str(folder), "max_steps": 10, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
        "save_total_limit": 9, "learning_rate": 1e-2, "weight_decay": 0.1,
        "load_best_model_at_end": False, **training,
    }  # fmt: skip
    training = {key: value for key, value in training.items() if value is not None}
    sections = {} if data is None else {"data": data}
    return make_recipe(task, training=training, method={"name": "prune", **method}, **sections)


class Watch(StopAt):
    """Notes after each step how many prunable weights are zero, and what the optimizer keeps."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.zeros: list[int] = []
        self.remembered = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"].optimizer
        weights = [model.get_parameter(name) for name in prunable_weights(model)]
        self.zeros.append(sum(int((weight == 0).sum()) for weight in weights))
        for weight in weights:
            average = optimizer.state[weight]["exp_avg"]
            self.remembered += float(average[weight == 0].abs().sum())


CUBIC = {"sparsity": 0.8, "schedule": "cubic", "begin_step": 2, "end_step": 6, "frequency": 2}
#: Of the tiny BERT's two layers: 4 x 32 x 32 and 2 x 32 x 64.
PRUNABLE = 2 * (4 * 32 * 32 + 2 * 32 * 64)


@pytest.mark.draws
def test_zeros_stay_zeros_and_rise_with_the_schedule(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    watch = Watch()
    run = hftune.train(run_for(make_recipe, tmp_path / "run", CUBIC), callbacks=[watch])
    due = [0, *[round(PRUNABLE * s) for s in (0, 0, 0.7, 0.7, *[0.8] * 5)]]
    assert watch.zeros == due
    assert watch.remembered == 0
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    shown = {line["step"]: line["sparsity"] for line in log if "loss" in line}
    expected = dict(zip(range(1, 11), (0, 0, 0, 0.7, 0.7, *[0.8] * 5), strict=True))
    assert shown == pytest.approx(expected)

    plain = load_file(run.model_path / "model.safetensors")
    model: Any = AutoModelForSequenceClassification.from_pretrained(run.model_path)
    names = prunable_weights(model)
    zeros = {name: int((plain[name] == 0).sum()) for name in names}
    assert sum(zeros.values()) == round(PRUNABLE * 0.8)
    layers = json.loads((run.path / "sparsity.json").read_text())
    assert {name: row["pruned"] for name, row in layers.items()} == zeros
    assert run.metrics["sparsity"] == pytest.approx(0.8, abs=1 / PRUNABLE)
    assert run.metrics["pruned_weights"] == sum(zeros.values())
    assert run.metrics["prunable_weights"] == PRUNABLE
    assert run.metrics["saved_zeros"] == sum(int((p == 0).sum()) for p in model.parameters())
    assert (run.path / "plots" / "sparsity_by_layer.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("method", "stop"),
    [
        (CUBIC, 9),  # after the last pruning
        ({"structure": "ffn", "importance": "taylor", **CUBIC}, 6),  # while effects add up
    ],
    ids=["single weights", "neurons"],
)
def test_resumed_in_any_phase_it_ends_with_the_same_bits(
    method: dict[str, Any], stop: int, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    training = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": stop - 1}
    training["eval_steps"] = None
    whole = hftune.train(run_for(make_recipe, tmp_path / "whole", method, **training))
    expected = load_file(whole.model_path / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        hftune.train(
            run_for(make_recipe, tmp_path / "cut", method, **training), callbacks=[StopAt(stop)]
        )
    stopped = Run(tmp_path / "cut")
    assert latest_checkpoint(stopped.checkpoints).name == f"checkpoint-{stop - 1}"
    resumed = load_file(hftune.train(stopped.recipe, resume=True).model_path / "model.safetensors")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_two_of_four_lasts_through_training(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = hftune.train(run_for(make_recipe, tmp_path / "run", {"structure": "2:4"}))
    weights = load_file(run.model_path / "model.safetensors")
    for name in prunable_weights(run.model):
        zeros = (weights[name].unflatten(1, (-1, 4)) == 0).sum(-1)
        assert torch.equal(zeros, torch.full_like(zeros, 2)), name
    assert run.metrics["sparsity"] == 0.5


@pytest.mark.parametrize("structure", ["ffn", "heads"])
def test_a_cut_decoder_from_recipe_to_plain_model(
    structure: str, make_recipe: Callable[..., Recipe], tmp_path: Path, chat_file: Path
) -> None:
    """Two heads of 32 become one, 128 neurons 64; loaded anew it is what was judged, masked."""
    method = {"structure": structure, "sparsity": 0.5}
    data = {"path": str(chat_file), "validation": str(chat_file)}
    run = hftune.train(
        run_for(make_recipe, tmp_path / "run", method, "text-generation", data, eval_steps=5)
    )
    config = AutoConfig.from_pretrained(run.model_path)
    if structure == "ffn":
        assert config.intermediate_size == 64
    else:
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        assert heads == (1, 1, 32)
    assert run.metrics["saved_parameters"] < run.metrics["parameters"]
    again = hftune.evaluate(run.path, str(chat_file))
    assert again["eval_loss"] == pytest.approx(run.metrics["eval_loss"], abs=1e-5)


def test_the_best_model_has_the_wanted_sparsity(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The rate ruins the model, so the best of all was dense; it is not the one that is kept."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.3}
    run = hftune.train(run_for(make_recipe, tmp_path / "run", CUBIC, **best))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    assert min(losses, key=losses.__getitem__) < 6
    assert run.metrics["eval_loss"] == pytest.approx(
        min(loss for step, loss in losses.items() if step >= 6), abs=1e-6
    )
    assert run.metrics["sparsity"] == pytest.approx(0.8, abs=1 / PRUNABLE)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"sparsity": 0}, "sparsity: must be above 0"),
        ({"sparsity": 1}, "sparsity: must be below 1"),
        ({"amount": 0.5}, "amount"),
        ({"structure": "2:4", "sparsity": 0.6}, "2:4 is a sparsity of 0.5"),
        ({"structure": "2:4", "scope": "global"}, "every layer is pruned alike"),
        ({"structure": "heads"}, "BertConfig knows no width of heads but hidden_size"),
        ({"structure": "ffn", "sparsity": 0.001}, "0.001 of the 64 units of a layer is none"),
        ({"structure": "ffn", "sparsity": 0.999}, "prunes all 64 units"),
        ({"structure": "ffn", "exclude_modules": ["query"]}, "one size for all"),
        ({"end_step": 0.5}, "only with schedule: cubic"),
        ({"begin_step": 10}, "nothing to train in a run of 10 steps"),
        ({**CUBIC, "end_step": 11}, "pruning after step 11 leaves nothing to train"),
        ({**CUBIC, "begin_step": 6}, "leaves nothing between"),
        ({**CUBIC, "frequency": 5}, "5 steps are more than the 4"),
        ({**CUBIC, "initial_sparsity": 0.8}, "0.8 does not rise to 0.8"),
        ({"importance": "taylor"}, "taylor needs gradients"),
        ({"target_modules": ["q_proj"]}, "no linear layer is called q_proj"),
        ({"exclude_modules": ["dense", "query", "key", "value"]}, "no linear layer to prune"),
    ],
)
def test_refused(make_recipe: Callable[..., Recipe], method: Any, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        hftune.check(make_recipe(method={"name": "prune", **method}, training={"max_steps": 10}))


def test_refused_for_its_shapes() -> None:
    odd = AutoModel.from_config(
        AutoConfig.for_model("bert", **{**SMALL, "hidden_size": 28, "intermediate_size": 50})
    )
    with pytest.raises(HftuneError, match=r"divides by 4, and encoder.layer.0.output.dense has 50"):
        Prune(structure="2:4").check(odd, context())
    Prune(structure="2:4", exclude_modules=["output.dense"]).check(odd, context())
    three = AutoConfig.for_model(
        "llama", **{**SMALL, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    )
    with pytest.raises(HftuneError, match="not a multiple of the number of attention heads"):
        Prune(structure="heads", sparsity=0.25).check(AutoModel.from_config(three), context())
    with pytest.raises(HftuneError, match="prunes all 4 groups of heads"):
        Prune(structure="heads", sparsity=0.9).check(AutoModel.from_config(three), context())
    with pytest.raises(HftuneError, match="position biases of its first layer"):
        Prune(structure="heads").check(small_model("t5"), context())
    tied: Any = AutoModelForSequenceClassification.from_config(small_model("gpt2").config)
    tied.score.weight = tied.transformer.wte.weight
    with pytest.raises(HftuneError, match="the weight of score is that of another module"):
        Prune(target_modules=["score"]).check(tied, context())
