# SPDX-License-Identifier: Apache-2.0
"""The loss contract: one step's gradient is the same however its rows are split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hftune.losses import LOSSES
from hftune.losses.loss import Loss
from hftune.losses.mixup import Mixup, Pairs
from tests.training.loss_cases import GROUP, Bench, Case, all_cases, kind_recipes

#: Micro-batches of a whole group, and of the short one that an epoch ends with.
SPLITS = [(8,), (4, 4), (2, 2, 2, 2), (1,) * 8]
SHORT = [(3,), (2, 1)]
CASES = all_cases()


@pytest.fixture(scope="session")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: Path,
    tiny_decoder: Path,
    tiny_seq2seq: Path,
    labelled_file: Path,
    tagged_file: Path,
    chat_file: Path,
    seq2seq_file: Path,
) -> Callable[[str], Bench]:
    """Return the Trainer of a kind of labels, made at its first use."""
    models = {
        "text-classification": tiny_encoder,
        "token-classification": tiny_encoder,
        "text-generation": tiny_decoder,
        "text2text-generation": tiny_seq2seq,
    }
    files = {
        "text-classification": labelled_file,
        "token-classification": tagged_file,
        "text-generation": chat_file,
        "text2text-generation": seq2seq_file,
    }
    recipes = kind_recipes(tmp_path_factory.mktemp("losses"), models, files)
    made: dict[str, Bench] = {}

    def get(kind: str) -> Bench:
        if kind not in made:
            made[kind] = Bench(recipes[kind])
        return made[kind]

    return get


def test_the_cases_are_many_and_of_every_loss_but_the_exempt() -> None:
    assert len(CASES) >= 40
    assert len({str(case) for case in CASES}) == len(CASES)
    exempt = {name for name, row in LOSSES.items() if row.compares_rows}
    assert {case.name for case in CASES} == LOSSES.keys() - exempt
    assert exempt == {"supervised_contrastive", "mixup"}


@pytest.mark.parametrize(
    ("kind", "name"), sorted({(case.kind, case.name) for case in CASES}), ids=str
)
def test_gradients_are_equal_in_every_split(
    kind: str, name: str, bench: Callable[[str], Bench]
) -> None:
    """In float64, with ragged rows and a blank one, to 1e-10."""
    for case in (case for case in CASES if (case.kind, case.name) == (kind, name)):
        loss = bench(kind).loss(case)
        for splits in (SPLITS, SHORT):
            whole, *others = (bench(kind).gradient(loss, sizes) for sizes in splits)
            assert whole.abs().max() > 1e-4, case
            for other in others:
                torch.testing.assert_close(other, whole, atol=1e-10, rtol=0, msg=str(case))


@pytest.mark.parametrize("name", ["supervised_contrastive", "mixup"])
def test_rows_that_are_compared_depend_on_the_split(
    name: str, bench: Callable[[str], Bench]
) -> None:
    """The exempt losses do need their exemption."""
    case = Case("single_label_classification", name, (), 0.0)
    here = bench(case.kind)
    whole, halves = (here.gradient(here.loss(case), sizes) for sizes in SPLITS[:2])
    assert (whole - halves).abs().max() > 1e-4


def test_mixup_is_exact_where_no_pair_is_torn(
    bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours in pairs with one share: sum and denominator hold in every split but the last."""

    def neighbours(self: Mixup, labels: Tensor) -> Pairs:
        partner = torch.arange(len(labels))
        if len(labels) > 1:
            partner = partner ^ 1
        blank = labels.eq(-100)
        partner = torch.where(blank | blank[partner], torch.arange(len(labels)), partner)
        share = torch.full((len(labels),), 0.3, dtype=torch.float64)
        return Pairs(partner, share, np.random.default_rng(0))

    monkeypatch.setattr(Mixup, "draw", neighbours)
    here = bench("single_label_classification")
    for weights, smoothing in ((None, 0.0), ("balanced", 0.1)):
        case = Case("single_label_classification", "mixup", (("class_weights", weights),),
                    smoothing)  # fmt: skip
        *whole, torn = (here.gradient(here.loss(case), sizes) for sizes in SPLITS)
        for other in whole[1:]:
            torch.testing.assert_close(other, whole[0], atol=1e-10, rtol=0)
        assert (torn - whole[0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["single_label_classification", "text-generation"])
def test_a_division_in_the_micro_batch_is_seen(
    kind: str, bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the micro-batches' means, which most trainers take, fails the check."""
    here = bench(kind)
    loss = here.loss(Case(kind, "cross_entropy", (("class_weights", "balanced"),), 0.0))
    exact = here.gradient(loss, (4, 4))

    def mean_of_means(model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        total, _ = trainer.loss.total(model, inputs)
        divisor = trainer.loss.denominator(inputs)
        return total / divisor / trainer.current_gradient_accumulation_steps

    trainer = here.trainer
    monkeypatch.setattr(trainer, "compute_loss", mean_of_means)
    whole = here.gradient(loss, (GROUP,))
    torch.testing.assert_close(whole, exact, atol=1e-10, rtol=0)  # one micro-batch: no difference
    assert (here.gradient(loss, (4, 4)) - exact).abs().max() > 1e-4


def test_own_losses_need_nothing_but_a_sum_and_a_count(bench: Callable[[str], Bench]) -> None:
    """The optional hooks have defaults."""

    class Plain(Loss):
        def denominator(self, batch):  # type: ignore[no-untyped-def]
            return batch["labels"].ne(-100).sum()

        def total(self, model, inputs):  # type: ignore[no-untyped-def]
            outputs = model(**{k: v for k, v in inputs.items() if k != "labels"})
            return outputs.logits.square().sum(1)[inputs["labels"].ne(-100)].sum(), outputs

    loss, here = Plain(), bench("single_label_classification")
    assert loss.prior() is None
    loss.check(here.model)
    whole, *others = (here.gradient(loss, sizes) for sizes in SPLITS)
    for other in others:
        torch.testing.assert_close(other, whole, atol=1e-10, rtol=0)
