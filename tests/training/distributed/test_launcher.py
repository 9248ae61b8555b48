# SPDX-License-Identifier: Apache-2.0
"""Each rule of a launch refuses what it is about, before anything is loaded, and only that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hftune
from hftune import Recipe
from hftune.core.errors import HftuneError, RecipeError
from hftune.training.distributed import launch_rules as launch
from hftune.training.distributed.launch_rules import RULES, check_launch
from hftune.training.distributed.launcher import Launch, precision
from hftune.training.distributed.sharding import describe_environment
from hftune.training.plan.prepare import prepare
from hftune.training.plan.resume import check_resumed

ROOT = Path(__file__).parents[3]
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "bf16"}
FP8 = {"ACCELERATE_MIXED_PRECISION": "fp8"}
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}
FLASH = {"attn_implementation": "flash_attention_2"}
OFFLOAD = {
    "training": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"offload": True},
    }
}
QLORA = {"method": "lora", "model": {"dtype": "bfloat16", "quantization": FOUR_BIT}}

#: Launcher's settings, sections of the recipe, and the one complaint on a machine with two GPUs.
REFUSED: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({}, {"training": {"fsdp": "full_shard"}}, "training.fsdp, training.deepspeed: the launcher"),
    ({**FSDP2, "LOCAL_WORLD_SIZE": "4"}, {}, "num_processes: more processes than"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, {}, "parallelism_config: tensor"),
    ({**FSDP2, "FSDP_VERSION": "1"}, {}, "fsdp_version: must be 2"),
    ({**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {}, "fsdp_state_dict_type: must"),
    ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "fsdp_activation_checkpointing: set"),
    ({**FSDP2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "fsdp_cpu_ram_efficient_loading: m"),
    ({}, {"model": FLASH}, "model.attn_implementation: flash_attention_2 computes in half"),
    (FSDP2, {"method": "adalora"}, "method: sharded, only these are tested: full, head_only"),
    (DEEPSPEED, {"method": "adalora"}, "method: sharded, only these are tested"),
    (FSDP2, {"training": {"optim": "adamw_bnb_8bit"}}, "training.optim: sharded, only these"),
    (FSDP2, {"training": {"optim": "sgd"}}, "training.optim_args: FSDP2 cannot resume"),
    (
        FSDP2,
        {"training": {"optim": "sgd", "optim_args": "momentum=0.0, dampening=0.1"}},
        "training.optim_args: FSDP2 cannot resume",
    ),
    (FSDP2, {"training": {"auto_find_batch_size": True}}, "training.auto_find_batch_size: a shar"),
    (
        FSDP2,
        {"method": "lora", "model": {"quantization": {"load_in_8bit": True}}},
        "model.quantization: 8-bit weights cannot be sharded",
    ),
    (DEEPSPEED, QLORA, "model.quantization: DeepSpeed with 4-bit weights"),
    (
        {**FSDP2, "ACCELERATE_MIXED_PRECISION": "fp16"},
        QLORA,
        "model.quantization.bnb_4bit_quant_storage: FSDP2 gathers",
    ),
    (
        FSDP2,
        {"method": "lora", "model": {"dtype": "float32", "quantization": FOUR_BIT}},
        "model.quantization.bnb_4bit_quant_storage: FSDP2 gathers",
    ),
    (
        FSDP2,
        {"method": "lora", "model": {"quantization": {"load_in_4bit": True}}},
        "model.quantization.bnb_4bit_quant_storage: FSDP2 gathers",
    ),
    (FP8, {"training": {"bf16": True}}, "--mixed-precision: the recipe sets training.bf16"),
    (FP8, {"method": "lora"}, "--mixed-precision: fp8 multiplies the weights that train"),
    ({**DEEPSPEED, **FP8}, {}, "--mixed-precision: fp8 with DeepSpeed"),
]
ALLOWED: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"model": FLASH, "training": {"bf16": True}}),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"model": FLASH}),
    ({}, {"model": {**FLASH, "dtype": "bfloat16"}}),
    ({}, {"model": {"attn_implementation": "flex_attention"}}),
    ({}, {"training": {"use_liger_kernel": True}}),
    ({}, OFFLOAD),
    (FSDP2, {}),
    ({**FSDP2, "LOCAL_WORLD_SIZE": "2"}, {"method": "lora"}),
    (FSDP2, QLORA),
    (FSDP2, {"training": {"optim": "sgd", "optim_args": "dampening=0.1, momentum=0.9"}}),
    ({}, {"training": {"optim": "sgd"}}),
    ({**FSDP2, "ACCELERATE_MIXED_PRECISION": "no"}, QLORA),
    (DEEPSPEED, {"method": "lora"}),
    (FP8, {}),
    ({**FSDP2, **FP8}, {"training": {"bf16": False, "fp16": False}}),
]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two new GPUs and all packages for them, as far as the rules can see."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "_too_old_for_fp8", lambda: False)
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    for rules in ("hftune.models.rules", "hftune.recipe.training_rules"):
        monkeypatch.setattr(f"{rules}.installed", lambda *packages: True)


def filled(sections: dict[str, Any], model: Path) -> dict[str, Any]:
    """Return the sections with a model, not on a CPU."""
    training = {"use_cpu": False, **sections.get("training", {})}
    section = {"path": str(model), **sections.get("model", {})}
    return {**sections, "model": section, "training": training}


@pytest.fixture
def launched(
    make_recipe: Callable[..., Recipe],
    tiny_encoder: Path,
    two_gpus: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[dict[str, str], dict[str, Any]], Launch]:
    """Check the launch of a recipe with these sections, under these settings of the launcher."""

    def check(settings: dict[str, str], sections: dict[str, Any]) -> Launch:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return check_launch(make_recipe(**filled(sections, tiny_encoder)))

    return check


@pytest.mark.parametrize(("settings", "sections", "says"), REFUSED)
def test_refused(
    settings: dict[str, str],
    sections: dict[str, Any],
    says: str,
    launched: Callable[[dict[str, str], dict[str, Any]], Launch],
) -> None:
    with pytest.raises(RecipeError) as error:
        launched(settings, sections)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(says)


@pytest.mark.parametrize(("settings", "sections"), ALLOWED)
def test_allowed(
    settings: dict[str, str],
    sections: dict[str, Any],
    launched: Callable[[dict[str, str], dict[str, Any]], Launch],
) -> None:
    launched(settings, sections)


@pytest.mark.parametrize("settings", [FSDP2, DEEPSPEED], ids=["fsdp", "deepspeed"])
def test_a_cpu_is_not_left_unsharded(
    settings: dict[str, str], make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="--accelerate: sharding needs GPUs"):
        prepare(make_recipe())


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": FLASH}, "model.attn_implementation"),
        ({"model": {"attn_implementation": "flex_attention"}}, "model.attn_implementation"),
        ({"training": {"use_liger_kernel": True}}, "training.use_liger_kernel"),
        (OFFLOAD, "training.activation_checkpointing_kwargs"),
    ],
)
def test_a_cpu_has_no_kernels_of_a_gpu(
    sections: dict[str, Any],
    key: str,
    make_recipe: Callable[..., Recipe],
    tiny_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rules in ("hftune.models.rules", "hftune.recipe.training_rules"):
        monkeypatch.setattr(f"{rules}.installed", lambda *packages: True)
    with pytest.raises(RecipeError, match=f"{key}: .*leave it out"):
        check_launch(make_recipe(**filled(sections, tiny_encoder)))


def test_fp8_on_a_cpu(make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(RecipeError, match=r"fp8 needs a GPU of compute capability 8\.9"):
        prepare(make_recipe())


def test_the_page_says_every_rule() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text()
    for rule in RULES:
        assert f"| `{rule.key}` | {rule.says} |" in page, rule.says


@pytest.mark.parametrize(
    ("given", "launched", "expected"),
    [
        ({}, None, "no"),
        ({}, "bf16", "bf16"),
        ({"bf16": False}, "bf16", "no"),
        ({"fp16": True}, "bf16", "fp16"),
        ({"bf16": False, "fp16": False}, "fp8", "fp8"),
    ],
)
def test_the_recipe_has_the_last_word_on_precision(
    given: dict[str, bool],
    launched: str | None,
    expected: str,
    make_recipe: Callable[..., Recipe],
) -> None:
    settings = {} if launched is None else {"ACCELERATE_MIXED_PRECISION": launched}
    recipe = make_recipe(training={"use_cpu": False, **given})
    assert precision(recipe, Launch(settings, gpus=1)) == expected


def test_a_precision_of_the_recipe_is_in_force(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = hftune.train(make_recipe(training={"bf16": False}))
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["mixed_precision"] == "no"
    assert environment["distribution"] == {"type": "NO", "machines": 1}
    first = (run.path / "recipe.yaml").read_text().splitlines()[0]
    assert first == "# in force: NO, 1 process, mixed precision no"
    assert first == f"# {describe_environment(environment)}"


def test_bf16_on_a_cpu_of_the_launcher(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``--accelerate cpu --mixed-precision bf16``: the recipe itself says nothing of a CPU."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    arguments = prepare(make_recipe(training={"use_cpu": False, "bf16": True})).settings.arguments
    assert (arguments.bf16, arguments.device.type) == (True, "cpu")


@pytest.mark.parametrize(
    ("then", "precision", "settings", "hint"),
    [
        ("FSDP2", "bf16", {}, "--resume --accelerate fsdp2"),
        ("NO", "no", FSDP2, "--resume"),
        ("DEEPSPEED", "bf16", FSDP2, "--resume --accelerate deepspeed_zero2"),
        ("NO", "fp8", {}, "add --mixed-precision fp8"),
        ("NO", "bf16", FP8, "leave out --mixed-precision fp8"),
    ],
)
def test_a_run_resumes_as_it_was_launched(
    then: str, precision: str, settings: dict[str, str], hint: str, tmp_path: Path
) -> None:
    facts = {"mixed_precision": precision, "distribution": {"type": then}}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    with pytest.raises(HftuneError) as error:
        check_resumed(tmp_path, Launch(settings, gpus=2))
    assert str(error.value.hint).endswith(hint)
