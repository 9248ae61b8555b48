# SPDX-License-Identifier: Apache-2.0
"""What every method promises, on a tiny model of every kind.

Nothing is exempted by name: what a method cannot do is a field of its row, and is tried, too.
"""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptLearningConfig

from hftune import HftuneError
from hftune.methods import PEFT, PEFT_TYPES, ROWS, make_method, method_row
from hftune.methods.merging import merge, merged, unmerge
from hftune.methods.peft import peft_configs
from tests.conformance.cases import (
    KINDS,
    TARGETS_OF_IMAGES,
    Bases,
    apply,
    backward,
    context_of,
    gradients,
    logits,
    options_of,
    pairs,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT's types say of themselves


def trained(*plain: str) -> list[Any]:
    """Return the cases of every method that a Trainer serves; kinds that are not named are slow."""
    rest = [kind for kind in KINDS if kind not in plain]
    cases = [*pairs(*plain), *pairs(*rest, marks=pytest.mark.slow)]
    return [case for case in cases if not ROWS[case.values[0]].fitted]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """The random models."""
    return Bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("name", ROWS)
def test_it_trains_what_its_row_says(name: str, bases: Bases) -> None:
    """Of the weights that were pretrained; a head is new, and what an adapter adds is, too."""
    row = ROWS[name]
    kind = "encoder" if "class" in row.labels or not row.labels else "decoder"
    base = bases.fresh(kind, quantized=row.quantization is not None)
    weights = dict(base.named_parameters())
    make_method(name, options_of(name, kind)).apply(base, context_of(kind))
    trained = {key: weight for key, weight in weights.items() if weight.requires_grad}
    pretrained = {key: weight for key, weight in trained.items() if "classifier" not in key}
    if row.trains == "weights":
        assert any(weight.ndim == 2 for weight in pretrained.values())
    elif row.trains == "biases":
        assert pretrained
        assert all(key.endswith("bias") for key in pretrained)
    else:
        assert not pretrained
        assert bool(trained) == (row.trains == "head")


@pytest.mark.parametrize("name", PEFT_TYPES)
def test_facts_that_peft_tells_too(name: str) -> None:
    config = peft_configs()[name]
    assert issubclass(config, PromptLearningConfig) == (ROWS[name].virtual_tokens is not None)
    assert (config is LoraConfig) == ROWS[name].has_lora_pairs


def close(one: Any, other: Any, room: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=room, rtol=room)


def test_every_name_that_a_recipe_takes_has_a_row() -> None:
    assert set(peft_configs()) <= set(ROWS)
    assert method_row("a type of tomorrow") is PEFT


@pytest.mark.parametrize(("name", "kind"), trained("encoder", "decoder", "encoder-decoder", "vit"))
def test_starts_at_the_base_trains_what_it_declares_and_merges(
    name: str, kind: str, bases: Bases
) -> None:
    """As its row says, where it claims less, too."""
    row = ROWS[name]
    expected = logits(bases.fresh(kind, quantized=row.quantization is not None), kind)
    base, method, model = apply(name, kind, bases)
    at_start = logits(model, kind)
    same = at_start.shape == expected.shape and torch.allclose(at_start, expected, atol=2e-5)
    assert same == row.starts_at_base

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
    assert (changed <= declared) != row.restarts
    learned = logits(model, kind)
    assert learned.isfinite().all()
    if not row.needs_base:
        for refused in (merge, merged, unmerge):
            with pytest.raises(HftuneError, match=f"{name} leaves a whole model"):
                refused(model, name)
        close(logits(method.finish(model), kind), learned)
        return
    for weight, bits in of_base.values():
        assert torch.equal(weight, bits)
    if row.no_merge is not None:
        for refused in (merge, merged, unmerge):
            with pytest.raises(HftuneError, match=f"{name} .*cannot be merged into its base"):
                refused(model, name)
        return
    if row.no_unmerge is not None or row.quantization is not None:
        with pytest.raises(HftuneError, match=f"{name} .*taken out again|quantized base"):
            merge(model, name)
    else:
        merge(model, name)
        close(logits(model, kind), learned)
        unmerge(model, name)
        close(logits(model, kind), learned)
        for weight, bits in of_base.values():
            close(weight, bits)
    whole = merged(model, name)
    assert type(whole) is type(base)
    assert not isinstance(whole, PeftModel)
    close(logits(whole, kind), learned)


@pytest.mark.parametrize(("name", "kind"), trained("encoder", "decoder"))
def test_gradients_recomputed_and_in_half_precision(name: str, kind: str, bases: Bases) -> None:
    _, method, model = apply(name, kind, bases)
    loss = backward(model, method, kind)
    expected = gradients(model)
    assert expected

    if (why := ROWS[name].no_checkpointing) is not None:
        with pytest.raises(HftuneError, match=f"gradient_checkpointing: {name} {why}"):
            apply(name, kind, bases, gradient_checkpointing=True)
    else:
        _, method, model = apply(name, kind, bases, gradient_checkpointing=True)
        assert torch.equal(backward(model, method, kind), loss)
        recomputed = gradients(model)
        assert recomputed.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(recomputed[key], value, atol=1e-6, rtol=1e-4)

    _, method, model = apply(name, kind, bases, mixed_precision="bf16")
    close(backward(model, method, kind, autocast=True), loss, 0.1)
    halved = gradients(model)
    assert halved.keys() == expected.keys()
    for key, value in halved.items():
        assert value.isfinite().all(), key


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.no_mixed_widths])
def test_what_wants_layers_of_one_width_says_so(name: str, bases: Bases) -> None:
    method = make_method(name, {"target_modules": TARGETS_OF_IMAGES})
    with pytest.raises(HftuneError, match=f"{name} takes one basis .*SwinForImage.* differ"):
        method.apply(bases.fresh("swin"), context_of("swin"))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.no_images])
def test_what_reads_texts_alone_says_so(name: str, bases: Bases) -> None:
    with pytest.raises(HftuneError, match=f"{name} .*image-classification has no texts"):
        apply(name, "vit", bases)
