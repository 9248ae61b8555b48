# SPDX-License-Identifier: Apache-2.0
"""Every PEFT type that a recipe can name, on tiny models of every task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaptionPromptConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hftune import HftuneError, Recipe
from hftune.methods import ROWS
from hftune.methods.peft import Peft, peft_configs
from hftune.methods.peft_types import NOT_FROM_A_RECIPE
from hftune.methods.tuners import TUNERS
from hftune.models.load import load_finetuned
from hftune.models.save import save_model
from hftune.tasks import task_row
from hftune.training.build import build_trainer
from hftune.training.finish import model_metadata
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from tests.conformance.cases import KINDS, options_of

TASKS = ("text-classification", "token-classification", "text-generation", "text2text-generation")
WITH_NEW_HEAD = TASKS[:2]
#: A tagger's head must be spared by name where the type cannot exclude modules.
TAGGER_OPTIONS = {"osf": {"target_modules": ["query", "value"]}}
pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
#: What taggers are tried with in every run of the tests; the rest is slow, and the conformance
#: suite has every type on one task.
TYPES_OF_TAGGERS = {"lora", "ia3", "boft", "ln_tuning", "osf", "p_tuning", "prefix_tuning"}


def cases() -> list[Any]:
    return [
        (name, task)
        if task == "token-classification" and name in TYPES_OF_TAGGERS
        else pytest.param(name, task, marks=pytest.mark.slow)
        for name in sorted(peft_configs())
        for task in TASKS
        if ROWS[name].suits(task_row(task))
    ]


@pytest.mark.parametrize(("name", "task"), cases())
def test_trains_only_its_own_and_survives_saving(
    name: str, task: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    training = {"max_steps": 3, "eval_strategy": "no", "save_strategy": "no"}
    own = options_of(name)
    if task == "token-classification":
        own = {**own, **TAGGER_OPTIONS.get(name, {})}
    recipe = make_recipe(task, training, method={"name": name, **own})
    plan = prepare(recipe)
    loaded = load_model(plan)
    model = loaded.model
    names = dict(model.named_parameters())
    trained = {key for key, value in names.items() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in names.items()}
    build_trainer(plan, loaded).train()
    after = dict(model.named_parameters())
    # Diff pruning ends with other parameters than it began with.
    kept = {key for key in before.keys() & after.keys() if torch.equal(after[key], before[key])}
    changed = before.keys() - kept
    assert changed, "nothing learned"
    assert changed <= trained
    if task in WITH_NEW_HEAD:
        assert any("classifier" in key and "bias" in key for key in changed)

    metadata = model_metadata(plan, loaded.base_fingerprint)
    save_model(tmp_path / "model", model, plan.pretrained.processor, metadata, "")
    reloaded = load_finetuned(tmp_path / "model", metadata, plan.objective.task.auto_model)
    batch = plan.objective.task.collator(plan.pretrained.processor, model)(
        [plan.splits.train.dataset[i] for i in range(4)]
    )
    batch.pop("labels")
    model.eval()
    with torch.no_grad():
        expected, actual = model(**batch).logits, reloaded(**batch).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["use_dora", "use_rslora", "pissa", "olora", "gaussian"])
def test_variants_of_lora_start_at_the_base(
    variant: str, make_recipe: Callable[..., Recipe]
) -> None:
    """The function is the base's at step 0, whatever the initialisation."""
    flags = {"use_dora", "use_rslora"}
    option = {variant: True} if variant in flags else {"init_lora_weights": variant}
    plan = prepare(make_recipe("text-generation", method={"name": "lora", "r": 4, **option}))
    base = prepare(make_recipe("text-generation", method="full"))
    batch = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[i] for i in range(4)]
    )
    batch.pop("labels")
    with torch.no_grad():
        expected = load_model(base).model.eval()(**batch).logits
        actual = load_model(plan).model.eval()(**batch).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_modules_that_the_checkpoint_lacks_train_and_are_saved(
    make_recipe: Callable[..., Recipe],
) -> None:
    """The tiny encoder came without a head; its pooler is there and stays frozen."""
    plan = prepare(make_recipe(method="lora"))
    model = load_model(plan).model
    saved = model.peft_config["default"].modules_to_save
    assert "classifier" in saved
    pooler = [p for name, p in model.named_parameters() if "pooler.dense.base_layer" in name]
    assert pooler
    assert not any(p.requires_grad for p in pooler)


def test_every_type_is_offered_or_excused() -> None:
    from peft import PeftType

    ours_and_theirs = {kind.value.lower() for kind in PeftType} | set(TUNERS)
    assert ours_and_theirs == set(peft_configs()) | set(NOT_FROM_A_RECIPE)


def test_nested_configs_become_their_class(make_recipe: Callable[..., Recipe]) -> None:
    from peft import LoraRuntimeConfig

    plan = prepare(
        make_recipe(method={"name": "lora", "runtime_config": {"ephemeral_gpu_offload": True}})
    )
    assert isinstance(plan.objective.method, Peft)
    config = plan.objective.method.config(plan.context())
    assert isinstance(config.runtime_config, LoraRuntimeConfig)
    assert config.runtime_config.ephemeral_gpu_offload


@pytest.mark.parametrize("name", ["lily", "peanut"])
def test_a_layer_that_a_type_does_not_know_shows_before_the_weights(
    name: str, make_recipe: Callable[..., Recipe]
) -> None:
    """PEFT says so with the error that torch has for a model without weights."""
    method = {"name": name, "target_modules": ["word_embeddings"]}
    with pytest.raises(HftuneError, match=f"method {name} does not fit .* type .*Embedding"):
        prepare(make_recipe(method=method))


def test_a_bias_that_would_count_twice_is_refused(make_recipe: Callable[..., Recipe]) -> None:
    """Adapted at zero, a Llama with biases does not answer as it did: PEFT's fault, shown here."""
    fields = KINDS["decoder"][2] | {"attention_bias": True}
    model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    for layer in model.model.layers:
        layer.self_attn.o_proj.bias.data = torch.linspace(-0.04, 0.04, 16)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        plain = model(ids).logits
        config = AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM")
        assert (get_peft_model(model, config)(input_ids=ids).logits - plain).abs().max() > 1e-3
    path = make_recipe("text-generation").model.path
    section = {"path": path, "config": {"attention_bias": True}}
    method = {"name": "adaption_prompt", "adapter_len": 4, "adapter_layers": 1}
    with pytest.raises(HftuneError, match="attention_bias: PEFT adds the bias"):
        prepare(make_recipe("text-generation", model=section, method=method))


def test_a_start_that_reads_weights_is_no_misfit(make_recipe: Callable[..., Recipe]) -> None:
    assert prepare(make_recipe(method="adamss")).objective.meta_model is None
