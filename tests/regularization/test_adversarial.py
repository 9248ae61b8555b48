# SPDX-License-Identifier: Apache-2.0
"""Steps of the length asked for towards a higher loss, and the gradient of both passes by hand."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hftune
from hftune import HftuneError, Recipe
from hftune.losses.chunked_head import whole_logits
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import LabelStats
from hftune.regularization.adversarial import Adversarial, shift
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare

EPSILON = 0.7


def bench(recipe: Recipe, rows: int = 6) -> tuple[Any, dict[str, Tensor], Adversarial]:
    """Return a model in float64, a batch of it, and the recipe's loss."""
    plan = prepare(recipe)
    model: Any = load_model(plan).model.double()
    batch: Any = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[i] for i in range(rows)]
    )
    assert isinstance(plan.objective.loss, Adversarial)
    return model, dict(batch), plan.objective.loss


def test_each_row_moves_by_so_much() -> None:
    gradient = torch.randn(3, 4, 5, dtype=torch.float64)
    gradient[1] = 0  # a row without a label
    step = shift(gradient, EPSILON)
    assert step.flatten(1).norm(dim=1).tolist() == pytest.approx([EPSILON, 0, EPSILON])
    same = F.cosine_similarity(step.flatten(1), gradient.flatten(1))
    assert same[[0, 2]].tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_gradient_is_that_of_two_passes_by_hand(
    method: str, make_recipe: Callable[..., Recipe]
) -> None:
    """Vectors are handed in as ``inputs_embeds``; of LoRA they are frozen."""
    recipe = make_recipe(method=method, regularization={"adversarial": EPSILON})
    model, batch, loss = bench(recipe)
    labels = batch["labels"]
    embeddings = model.get_input_embeddings()
    before = embeddings.weight.detach().clone()
    total, outputs = loss.total(model, batch)
    total.backward()
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: p.grad.clone() for name, p in trains.items() if p.grad is not None}
    assert torch.equal(embeddings.weight, before)
    assert not embeddings._forward_hooks

    def of(vectors: Tensor) -> Tensor:
        said = model(inputs_embeds=vectors, attention_mask=batch["attention_mask"])
        return F.cross_entropy(said.logits, labels, reduction="sum")

    model.zero_grad()
    vectors = embeddings(batch["input_ids"]).detach().requires_grad_()
    plain = of(vectors)
    (gradient,) = torch.autograd.grad(plain, vectors)
    lengths = gradient.flatten(1).norm(dim=1)[:, None, None]
    step = EPSILON * gradient / lengths
    read = embeddings(batch["input_ids"])
    both = of(read) / 2 + of(read + step) / 2
    both.backward()
    assert total.item() == pytest.approx(both.item(), abs=1e-10)
    assert total.item() > plain.item()  # nearby it is higher
    for name, parameter in trains.items():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-10, rtol=0)
    assert outputs.logits.shape == (6, 3)


def test_both_passes_see_the_same_dropout(
    make_recipe: Callable[..., Recipe], tiny_encoder: Any
) -> None:
    """With a step of nearly nothing they are the same pass."""
    recipe = make_recipe(
        model={"path": str(tiny_encoder), "config": {"hidden_dropout_prob": 0.5}},
        regularization={"adversarial": 1e-12},
    )
    model, batch, loss = bench(recipe)
    model.train()
    torch.manual_seed(3)
    total, _ = loss.total(model, batch)
    torch.manual_seed(3)
    plain, _ = loss.task_loss.total(model, batch)
    assert total.item() == pytest.approx(plain.item(), abs=1e-9)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation"])
def test_the_gradient_does_not_depend_on_the_split(
    task: str, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe(task, regularization={"adversarial": EPSILON})
    plan = prepare(recipe)
    model: Any = load_model(plan).model.double()
    trainer = build_trainer(plan, LoadedModel(model))
    rows = [plan.splits.train.dataset[index] for index in range(8)]

    def gradient(size: int) -> Tensor:
        groups = [rows[start : start + size] for start in range(0, 8, size)]
        trainer.current_gradient_accumulation_steps = len(groups)
        model.zero_grad()
        collated = iter([trainer.data_collator(group) for group in groups])
        batches, count = trainer.get_batch_samples(collated, len(groups), torch.device("cpu"))
        for batch in batches:
            trainer.training_step(model, batch, count)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient(8)
    for size in (1, 4):
        torch.testing.assert_close(gradient(size), whole, atol=1e-10, rtol=0)


def test_a_head_in_chunks_has_the_gradient_of_the_whole(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe("text-generation", regularization={"adversarial": EPSILON})
    model, batch, loss = bench(recipe)
    found = []
    for whole in (True, False):
        model.zero_grad()
        with whole_logits() if whole else nullcontext():
            loss.total(model, batch)[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=0)


def test_evaluation_is_plain_and_two_stacks_are_refused(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(regularization={"adversarial": EPSILON})
    run = hftune.train(recipe)
    judged = hftune.evaluate(run, prepare(recipe).splits.examples.validation)  # type: ignore[arg-type]
    assert run.metrics["eval_loss"] == pytest.approx(judged["eval_loss"], abs=1e-6)
    with pytest.raises(HftuneError, match="moves what one stack reads"):
        prepare(make_recipe("text2text-generation", regularization={"adversarial": EPSILON}))


def test_the_class_shares_are_those_of_the_labels_loss() -> None:
    loss = Adversarial(CrossEntropy(logit_adjustment=1.0), 1.0)
    loss.fit(LabelStats(classes=["a", "b"], counts=[3, 1]))
    alone = CrossEntropy(logit_adjustment=1.0)
    alone.fit(LabelStats(classes=["a", "b"], counts=[3, 1]))
    mine, theirs = loss.prior(), alone.prior()
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine, theirs)
