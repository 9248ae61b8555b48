# SPDX-License-Identifier: Apache-2.0
"""QLoRA sets what its paper has, says so, and leaves a plain LoRA adapter."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

import hftune
from hftune import HftuneError, Recipe
from hftune.models.load import keep_unpacked
from hftune.training.distributed.launcher import Launch
from hftune.training.load_model import load_model
from hftune.training.memory.memory_report import plan_memory
from hftune.training.plan.arguments import for_device
from hftune.training.plan.prepare import prepare

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}

pytestmark = pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of itself


def test_the_name_sets_what_the_paper_has(make_recipe: Callable[..., Recipe]) -> None:
    """Dettmers et al. 2023, section 4 and appendix B.2, models of up to 13B."""
    recipe = make_recipe("text-generation", method="qlora")
    assert recipe.model.quantization == NF4
    assert recipe.method.options == {
        "r": 64, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"
    }  # fmt: skip
    paper = {"learning_rate": 2e-4, "max_grad_norm": 0.3}
    assert paper.items() <= recipe.training.items()
    assert recipe.training["lr_scheduler_type"] == "constant_with_warmup"


def test_what_the_recipe_says_counts_for_more(make_recipe: Callable[..., Recipe]) -> None:
    path = make_recipe("text-generation").model.path
    quantization = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "float16"}
    recipe = for_device(
        make_recipe(
            "text-generation",
            {"lr_scheduler_type": "cosine", "optim": "sgd", "max_grad_norm": 1.0},
            model={"path": path, "quantization": quantization},
            method={"name": "qlora", "r": 8, "target_modules": ["q_proj"]},
        ),
        Launch({}, gpus=1),
    )
    assert recipe.model.quantization == {**NF4, **quantization}
    assert recipe.method.options["r"] == 8
    assert recipe.method.options["target_modules"] == ["q_proj"]
    chosen = {key: recipe.training[key] for key in ("lr_scheduler_type", "optim", "max_grad_norm")}
    assert chosen == {"lr_scheduler_type": "cosine", "optim": "sgd", "max_grad_norm": 1.0}


@pytest.mark.parametrize(
    ("gpus", "bf16", "settings", "compute", "optim"),
    [
        (1, True, {}, "bfloat16", "paged_adamw_32bit"),
        (1, False, {}, "float32", "paged_adamw_32bit"),
        (1, True, {"ACCELERATE_USE_FSDP": "true"}, "bfloat16", None),
        (0, True, {}, "float32", None),
    ],
)
def test_the_device_settles_the_rest(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch,
    gpus: int, bf16: bool, settings: dict[str, str], compute: str, optim: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    recipe = make_recipe("text-generation", method="qlora")
    settled = for_device(recipe, Launch(settings, gpus=gpus))
    assert settled.model.quantization == {**NF4, "bnb_4bit_compute_dtype": compute}
    assert settled.training.get("optim") == optim
    assert recipe.model.quantization == NF4  # the recipe itself stays
    assert (
        for_device(make_recipe(method="lora"), Launch({}, gpus=gpus)).training.get("optim") is None
    )


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"load_in_8bit": True}, "qlora has a 4-bit base; take lora for 8 bits"),
        ({"load_in_4bit": False}, "qlora has a 4-bit base; take lora for 8 bits"),
        ({"bits": 4}, "model.quantization.bits: unknown key"),
    ],
)
def test_refused(make_recipe: Callable[..., Recipe], quantization: Any, message: str) -> None:
    path = make_recipe("text-generation").model.path
    with pytest.raises(HftuneError, match=message):
        make_recipe(
            "text-generation", method="qlora", model={"path": path, "quantization": quantization}
        )


def test_without_bitsandbytes_it_names_the_extra(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hftune.core.rules.find_spec", lambda name: None)
    with pytest.raises(HftuneError, match=r"pip install 'hftune\[bnb\]'"):
        make_recipe("text-generation", method="qlora")


def test_from_recipe_to_an_adapter_that_peft_loads(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    training = {"max_steps": 10, "learning_rate": 1e-2, "output_dir": str(tmp_path / "run")}
    run = hftune.train(make_recipe("text-generation", training, method={"name": "qlora", "r": 4}))
    layer = run.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert type(layer.weight).__name__ == "Params4bit"
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested  # double quantization
    assert not layer.weight.requires_grad
    assert all("lora_" in name for name, p in run.model.named_parameters() if p.requires_grad)
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0] - 0.1

    saved = json.loads((run.model_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    assert LoraConfig.from_pretrained(run.model_path).r == 4
    resolved = (run.path / "recipe.yaml").read_text()
    assert "name: qlora" in resolved
    assert "bnb_4bit_quant_type: nf4" in resolved
    assert "bnb_4bit_compute_dtype: float32" in resolved
    assert Recipe.load(run.path / "recipe.yaml").model == run.recipe.model

    card = (run.model_path / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    assert "hftune" not in code
    assert "bnb_4bit_use_double_quant=True" in code
    plain: dict[str, Any] = {}
    exec(code.replace('"FOLDER"', repr(str(run.model_path))), plain)
    keep_unpacked(plain["model"])  # as hftune does; see there
    batch = run.tokenizer("alpha beta", return_tensors="pt")
    with torch.no_grad():
        expected = run.model.eval()(**batch).logits
        torch.testing.assert_close(
            plain["model"].eval()(**batch).logits, expected, atol=1e-5, rtol=0
        )


def test_a_classifiers_head_and_pooler_stay_whole(make_recipe: Callable[..., Recipe]) -> None:
    run = hftune.train(make_recipe(method={"name": "qlora", "r": 4}))
    kinds = {name: type(part).__name__ for name, part in run.model.named_modules()}
    packed = [name for name, kind in kinds.items() if kind == "Linear4bit"]
    assert packed
    assert not [name for name in packed if "classifier" in name or "pooler" in name]
    assert run.metrics["eval_loss"] > 0
    batch = run.tokenizer("alpha red", return_tensors="pt")
    with torch.no_grad():
        expected = run.model(**batch).logits
        torch.testing.assert_close(hftune.load(run.path).model(**batch).logits, expected)


def test_check_counts_the_bytes_of_the_base(make_recipe: Callable[..., Recipe]) -> None:
    """Embeddings and the head stay in float32; the rest is counted from the real 4-bit tensors."""
    plan = prepare(make_recipe("text-generation", method={"name": "qlora", "r": 4}))
    estimate = plan_memory(plan)
    assert estimate is not None
    real = 0
    for weight in load_model(plan).model.parameters():
        real += weight.nbytes
        if type(weight).__name__ == "Params4bit":
            state = weight.quant_state.as_dict(packed=True).values()
            real += sum(part.nbytes for part in state if isinstance(part, torch.Tensor))
    assert estimate.weights == pytest.approx(real, rel=0.1)  # tables of fixed size count here
