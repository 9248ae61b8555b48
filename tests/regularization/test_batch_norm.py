# SPDX-License-Identifier: Apache-2.0
"""Statistics that stand still in a tiny ResNet, through a plain Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from hftune import HftuneError
from hftune.regularization.batch_norm import FrozenBatchNorm, batch_norms, statistics_kept
from tests.methods.tiny_models import build


def resnet() -> Any:
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=2)
    )


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_after_training(frozen: bool, tmp_path: Path) -> None:
    """Two epochs move them, or not; scale and shift train in both cases."""
    model = resnet()
    before, scale = statistics(model), batch_norms(model)[0].weight.detach().clone()
    rows = [{"pixel_values": torch.randn(3, 8, 8) + 3, "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4,
        learning_rate=0.1, use_cpu=True, save_strategy="no", disable_tqdm=True, report_to="none",
    )  # fmt: skip
    callbacks: list[Any] = [FrozenBatchNorm(model)] if frozen else []
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()  # type: ignore[arg-type]
    after = statistics(model)
    assert all(torch.equal(after[name], before[name]) for name in before) == frozen
    assert not torch.equal(batch_norms(model)[0].weight, scale)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_rows_do_not_depend_on_each_other_when_frozen() -> None:
    model, pixels = resnet().train(), torch.randn(4, 3, 8, 8)
    FrozenBatchNorm(model).on_train_begin(None, None, None)
    together = model(pixel_values=pixels).logits
    alone = torch.cat([model(pixel_values=pixels[i : i + 1]).logits for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_second_pass_leaves_the_statistics() -> None:
    model, pixels = resnet().train(), torch.randn(4, 3, 8, 8)
    first = model(pixel_values=pixels).logits
    before = statistics(model)
    with statistics_kept(model):
        torch.testing.assert_close(model(pixel_values=pixels).logits, first)
    after = statistics(model)
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert all(name.endswith("num_batches_tracked") for name in moved)
    assert {module.momentum for module in batch_norms(model)} == {0.1}


def test_a_model_without_is_refused() -> None:
    with pytest.raises(HftuneError, match="BertForSequenceClassification has no batch norm"):
        FrozenBatchNorm(build("bert"))
