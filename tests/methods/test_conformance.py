# SPDX-License-Identifier: Apache-2.0
"""What every method promises, on a tiny model of every kind.

Nothing is exempted by name: what a method cannot do is a field of its row, and is tried, too.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from hftune import HftuneError
from hftune.methods import PEFT, ROWS, method_row
from hftune.methods.merging import merge, merged, unmerge
from hftune.methods.peft import peft_configs
from tests.conformance.cases import (
    IMAGES,
    KINDS,
    Bases,
    apply,
    backward,
    batch,
    context_of,
    gradients,
    logits,
    options_of,
    pairs,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves
TEXTS = ("encoder", "decoder", "encoder-decoder")
CASES = [*pairs(*TEXTS, "vit"), *pairs("swin", marks=pytest.mark.slow)]
TRAINED = [case for case in CASES if not ROWS[case.values[0]].fitted]
every = pytest.mark.parametrize(("name", "kind"), CASES)
every_trained = pytest.mark.parametrize(("name", "kind"), TRAINED)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """The random models."""
    return Bases(tmp_path_factory.mktemp("bases"))


def close(one: Any, other: Any, room: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=room, rtol=room)


def test_every_name_that_a_recipe_takes_has_a_row() -> None:
    assert set(peft_configs()) <= set(ROWS)
    assert method_row("a type of tomorrow") is PEFT


@every
def test_starts_at_the_base(name: str, kind: str, bases: Bases) -> None:
    """As its row says: a method that claims less than it does is a fault, too."""
    expected = logits(bases.fresh(kind, quantized=ROWS[name].quantizes), kind)
    actual = logits(apply(name, kind, bases)[2], kind)
    same = actual.shape == expected.shape and torch.allclose(actual, expected, atol=2e-5)
    assert same == ROWS[name].starts_at_base


@every_trained
def test_trains_what_it_declares_and_merges_if_it_can(name: str, kind: str, bases: Bases) -> None:
    row = ROWS[name]
    base, method, model = apply(name, kind, bases)
    assert method.saves_adapter == row.saves_adapter
    of_base = {key: (weight, weight.detach().clone()) for key, weight in base.named_parameters()
               if not weight.requires_grad}  # fmt: skip
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    declared = {key for key, weight in model.named_parameters() if weight.requires_grad}
    train(model, method, kind)
    after = dict(model.named_parameters())
    # Diff pruning ends with other parameters than it began with.
    changed = {key for key in before.keys() & after.keys()
               if not torch.equal(before[key], after[key])}  # fmt: skip
    assert changed | (before.keys() - after.keys()), "nothing learned"
    assert changed <= declared
    trained = logits(model, kind)
    assert trained.isfinite().all()
    if not row.saves_adapter:
        for refused in (merge, merged, unmerge):
            with pytest.raises(HftuneError, match=f"{name} leaves a whole model"):
                refused(model, name)
        close(logits(method.finish(model), kind), trained)
        return
    for weight, bits in of_base.values():
        assert torch.equal(weight, bits)
    if row.no_merge is not None:
        for refused in (merge, merged, unmerge):
            with pytest.raises(HftuneError, match=f"{name} .*cannot be merged into its base"):
                refused(model, name)
        return
    if row.no_unmerge is not None or row.quantizes:
        with pytest.raises(HftuneError, match=f"{name} .*taken out again|quantized base"):
            merge(model, name)
    else:
        merge(model, name)
        close(logits(model, kind), trained)
        unmerge(model, name)
        close(logits(model, kind), trained)
    whole = merged(model, name)
    assert type(whole) is type(base)
    assert not isinstance(whole, PeftModel)
    close(logits(whole, kind), trained)


@every_trained
def test_gradients_recomputed_and_in_half_precision(name: str, kind: str, bases: Bases) -> None:
    _, method, model = apply(name, kind, bases)
    loss = backward(model, method, kind)
    expected = gradients(model)
    assert expected

    _, method, model = apply(name, kind, bases, gradient_checkpointing=True)
    if ROWS[name].no_checkpointing is None:
        assert torch.equal(backward(model, method, kind), loss)
        recomputed = gradients(model)
        assert recomputed.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(recomputed[key], value, atol=1e-6, rtol=1e-4)
    else:
        with pytest.raises(ValueError, match="gradient checkpointing"):
            backward(model, method, kind)

    _, method, model = apply(name, kind, bases, mixed_precision=True)
    close(backward(model, method, kind, autocast=True), loss, 0.1)
    halved = gradients(model)
    assert halved.keys() == expected.keys()
    for key, value in halved.items():
        assert value.isfinite().all(), key


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.no_images])
def test_what_reads_texts_alone_says_so(name: str, bases: Bases) -> None:
    with pytest.raises(HftuneError, match=f"{name} .*image-classification has no texts"):
        apply(name, "vit", bases)
