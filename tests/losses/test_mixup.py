# SPDX-License-Identifier: Apache-2.0
"""Mixed rows against sums by hand, for words, for images, and for boxes pasted in."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hftune import HftuneError
from hftune.core.errors import RunError
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import LabelStats, forward
from hftune.losses.mixup import CutMix, Mixup, Pairs, edges, mixed_embeddings, soft_labels

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "num_labels": 3, "pad_token_id": 0,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
#: Three rows of 5, 3 and 4 tokens, and a blank one.
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 5, 3, 0, 0], [2, 11, 12, 3, 0], [2, 3, 0, 0, 0]])
LABELS = torch.tensor([0, 2, 1, -100])
PARTNER = torch.tensor([1, 2, 0, 3])


def batch() -> dict[str, Tensor]:
    mask = IDS.ne(0).long()
    return {"input_ids": IDS, "attention_mask": mask, "token_type_ids": mask * 0, "labels": LABELS}


def text_model(family: str) -> Any:
    torch.manual_seed(0)
    if family == "bert":
        return BertForSequenceClassification(BertConfig(**SIZES, **NO_DROPOUT)).double()
    return LlamaForSequenceClassification(LlamaConfig(**SIZES)).double()


def image_model() -> Any:
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, **{**SIZES, **NO_DROPOUT})
    return ViTForImageClassification(config).double()


def given(kind: type[Mixup], share: list[float], **options: Any) -> Mixup:
    """A loss that mixes in a given way."""

    class Given(kind):  # type: ignore[misc,valid-type]
        def draw(self, labels: Tensor) -> Pairs:
            whole = torch.tensor(share, dtype=torch.float64).expand(len(labels))
            return Pairs(PARTNER[: len(labels)], whole, np.random.default_rng(0))

    loss: Mixup = Given(**options)
    loss.fit(LabelStats(classes=["a", "b", "c"], counts=[10, 4, 1], label_smoothing=0.1))
    return loss


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_share_of_one_is_the_row_and_so_is_none_of_a_text(family: str) -> None:
    """Also where the partner is longer or shorter: a decoder's head looks at the last token."""
    model, inputs = text_model(family), batch()
    if family == "llama":
        del inputs["token_type_ids"]
    plain = CrossEntropy(class_weights="balanced")
    plain.fit(LabelStats(classes=["a", "b", "c"], counts=[10, 4, 1], label_smoothing=0.1))
    logits = forward(model, inputs).logits
    expected, _ = plain.total(model, inputs)
    for share in (1.0, 0.0):
        total, outputs = given(Mixup, [share], class_weights="balanced").total(model, inputs)
        torch.testing.assert_close(outputs.logits[:3], logits[:3], atol=1e-12, rtol=0)
        torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)


def test_mixed_words_by_hand() -> None:
    """Vectors of missing tokens count as zero, and the mask is that of either row."""
    model, inputs = text_model("bert"), batch()
    share = torch.tensor([0.7, 0.8, 0.5, 0.9], dtype=torch.float64)
    vectors = model.bert.embeddings.word_embeddings(IDS) * IDS.ne(0)[..., None]
    mix = share[:, None, None] * vectors + (1 - share)[:, None, None] * vectors[PARTNER]
    mask = (IDS.ne(0) | IDS[PARTNER].ne(0)).long()
    logits = model(inputs_embeds=mix, attention_mask=mask).logits[:3]
    weight = torch.tensor([15 / 30, 15 / 12, 15 / 3], dtype=torch.float64)
    expected = sum(
        part * F.cross_entropy(logits[i : i + 1], LABELS[j : j + 1], weight=weight,
                               reduction="sum", label_smoothing=0.1)
        for i in range(3)
        for part, j in ((share[i], i), (1 - share[i], int(PARTNER[i])))
    )  # fmt: skip
    loss = given(Mixup, [0.7, 0.2, 0.5, 0.9], class_weights="balanced")
    total, outputs = loss.total(model, inputs)
    torch.testing.assert_close(outputs.logits[:3], logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(total, torch.as_tensor(expected), atol=1e-6, rtol=0)
    assert not model.get_input_embeddings()._forward_hooks


def test_a_decoder_answers_at_the_end_of_the_longer_text() -> None:
    """Its head looks for the last id that is no padding, so the ids must be those of either row."""
    model, inputs = text_model("llama"), batch()
    del inputs["token_type_ids"]
    vectors = model.model.embed_tokens(IDS) * IDS.ne(0)[..., None]
    mask = (IDS.ne(0) | IDS[PARTNER].ne(0)).long()
    mix = 0.6 * vectors + 0.4 * vectors[PARTNER]
    hidden = model.model(inputs_embeds=mix, attention_mask=mask).last_hidden_state
    expected = model.score(hidden[torch.arange(4), mask.sum(1) - 1])[:3]
    _, outputs = given(Mixup, [0.6]).total(model, inputs)
    torch.testing.assert_close(outputs.logits[:3], expected, atol=1e-12, rtol=0)


def test_the_denominator_holds_for_one_share() -> None:
    """The weights of the mixed labels sum up to those of the labels."""
    loss = given(Mixup, [0.3], class_weights="balanced")
    assert loss.weight is not None
    mix = soft_labels(LABELS, torch.full((4,), 0.3, dtype=torch.float64), PARTNER, 3)[:3]
    assert float((mix * loss.weight).sum()) == pytest.approx(float(loss.denominator(batch())))


def test_mixed_images_by_hand() -> None:
    model = image_model()
    torch.manual_seed(1)
    pixels = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    inputs = {"pixel_values": pixels, "labels": LABELS[:3]}
    total, outputs = given(Mixup, [0.25]).total(model, inputs)
    logits = model(pixel_values=0.25 * pixels + 0.75 * pixels[PARTNER[:3]]).logits
    targets = 0.25 * F.one_hot(LABELS[:3], 3) + 0.75 * F.one_hot(LABELS[PARTNER[:3]], 3)
    expected = F.cross_entropy(logits, targets.double(), reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(outputs.logits, logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("per", ["batch", "row"])
def test_boxes_count_as_much_as_their_area(per: Any) -> None:
    """Rows are of one colour, so what is pasted can be counted; the model reads those images."""
    model = image_model()
    pixels = torch.arange(3, dtype=torch.float64)[:, None, None, None].expand(3, 3, 8, 8)
    loss = CutMix(per=per)
    torch.manual_seed(3)
    for _ in range(5):
        pairs = loss.draw(LABELS[:3])
        images, share = loss.pixels(pixels, pairs)
        for row in range(3):
            other = int(pairs.partner[row])
            pasted = images[row].eq(other).double().mean() if other != row else 1 - share[row]
            assert float(1 - share[row]) == pytest.approx(float(pasted))
            assert set(images[row].unique().tolist()) <= {row, other}
        assert per == "row" or share.unique().numel() == 1
    torch.manual_seed(4)
    images, share = loss.pixels(pixels, loss.draw(LABELS[:3]))
    torch.manual_seed(4)
    partner = loss.draw(LABELS[:3]).partner
    targets = soft_labels(LABELS[:3], share, partner, 3)
    expected = F.cross_entropy(model(pixel_values=images).logits, targets, reduction="sum")
    torch.manual_seed(4)
    total, _ = loss.total(model, {"pixel_values": pixels, "labels": LABELS[:3]})
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)


def test_edges_of_a_box() -> None:
    """Half of the side where three quarters of the area stay; cut off at the border."""
    low, high = edges(8, np.array([0.75, 0.75, 0.0, 1.0]), np.array([4, 0, 4, 4]))
    assert low.tolist() == [2, 0, 0, 4]
    assert high.tolist() == [6, 2, 8, 4]


def test_draws() -> None:
    """By torch's generator and the process; as Beta draws; a blank row has itself alone."""
    loss = Mixup(alpha=0.4, per="row")
    labels = torch.randint(3, (4000,))
    labels[5] = -100
    torch.manual_seed(7)
    one, two = loss.draw(labels), loss.draw(labels)
    torch.manual_seed(7)
    again = loss.draw(labels)
    assert torch.equal(one.partner, again.partner)
    assert torch.equal(one.share, again.share)
    assert not torch.equal(one.partner, two.partner)
    assert torch.equal(one.partner.sort().values, torch.arange(4000))
    assert int(one.partner[5]) == 5
    share = torch.cat([one.share, two.share])
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.var()) == pytest.approx(0.25 / (2 * 0.4 + 1), abs=0.01)


def test_processes_draw_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.randint(3, (50,))
    found = []
    for process in (0, 1):
        monkeypatch.setattr("hftune.losses.mixup.process_index", lambda process=process: process)
        torch.manual_seed(7)
        found.append(Mixup().draw(labels))
    assert not torch.equal(found[0].partner, found[1].partner)
    assert float(found[0].share[0]) != float(found[1].share[0])


def test_what_is_refused() -> None:
    config = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(HftuneError, match="t5 is both"):
        Mixup().check(T5ForSequenceClassification(config))
    model, short = text_model("bert"), torch.ones(4, 3)
    with (
        pytest.raises(RunError, match="one vector a token"),
        mixed_embeddings(model, short, short, PARTNER),
    ):
        forward(model, batch())
    assert not model.get_input_embeddings()._forward_hooks
