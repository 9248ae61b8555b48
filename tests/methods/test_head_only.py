# SPDX-License-Identifier: Apache-2.0
"""Only the head, and what the checkpoint lacks, trains."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertModel

from hftune import Recipe
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare


def test_the_trunk_stands_still(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe(method="head_only", training={"learning_rate": 0.1}))
    model = load_model(plan).model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    build_trainer(plan, LoadedModel(model)).train()
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == {"classifier.weight", "classifier.bias"}


def test_a_pooler_that_the_checkpoint_lacks_trains_too(
    make_recipe: Callable[..., Recipe], tiny_encoder: Path, tmp_path: Path
) -> None:
    """As in checkpoints of masked-language-model training."""
    import shutil

    folder = tmp_path / "without_pooler"
    shutil.copytree(tiny_encoder, folder)
    BertModel.from_pretrained(tiny_encoder, add_pooling_layer=False).save_pretrained(folder)
    for method in ("head_only", "lora"):
        plan = prepare(make_recipe(method=method, model={"path": str(folder)}))
        trained = {n for n, p in load_model(plan).model.named_parameters() if p.requires_grad}
        assert any("pooler" in n and "lora_" not in n for n in trained), method
