# SPDX-License-Identifier: Apache-2.0
"""The sum over labelled positions, in chunks, against the sum over whole logits."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from hftune.losses import chunked_head as of_head
from hftune.losses.chunked_head import summed_at_labels
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.focal import Focal
from hftune.losses.loss import LabelStats, Loss, aligned, forward

WORDS = 100
FIELDS = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
          "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT on tied weights


def llama(**more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**FIELDS, **more))


def with_lora(**more: Any) -> Any:
    return get_peft_model(
        llama(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **more)
    )


MODELS: dict[str, Callable[[], Any]] = {
    "head trains": llama,
    "head is the table of tokens": lambda: llama(tie_word_embeddings=True),
    "head is frozen": lambda: with_lora(target_modules=["q_proj", "down_proj"]),
    "LoRA on the head": lambda: with_lora(target_modules=["q_proj", "lm_head"]),
    "a copy of the head trains": lambda: with_lora(modules_to_save=["lm_head"]),
    "virtual tokens": lambda: get_peft_model(
        llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ),
    "logits are capped": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**FIELDS, head_dim=8)
    ),
    "logits are scaled": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**FIELDS, logits_scaling=4.0)
    ),
}
LOSSES: dict[str, Callable[[], Loss]] = {
    "plain": CrossEntropy,
    "smoothed": CrossEntropy,
    "weighted": lambda: CrossEntropy(class_weights=[1.0 + word / 50 for word in range(WORDS)]),
    "focal": Focal,
}


@pytest.fixture(autouse=True)
def seven_positions_a_chunk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(of_head, "CHUNK", 7 * WORDS)
    return


def make(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    for parameter in model.parameters():  # so that capped logits are really capped
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return model


def make_loss(name: str) -> Any:
    loss = LOSSES[name]()
    loss.fit(LabelStats(classes=[str(word) for word in range(WORDS)], counts=[1] * WORDS,
                        causal=True, label_smoothing=0.1 * (name == "smoothed")))  # fmt: skip
    return loss


def rows() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(3, WORDS, (3, 17), generator=chance)
    labels = ids.masked_fill(torch.rand(3, 17, generator=chance) < 0.4, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def whole(model: Any, loss: Any, batch: dict[str, Tensor]) -> Tensor:
    """The same loss of all logits."""
    logits, labels = aligned(forward(model, batch).logits, batch["labels"], causal=True)
    of = loss.cross_entropy if isinstance(loss, CrossEntropy) else loss._of_labels
    total: Tensor = of(logits, labels)
    return total


def gradients(model: Any, total: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (0.37 * total).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_sum_and_gradients_are_those_of_whole_logits(name: str, kind: str) -> None:
    model, loss, batch = make(name), make_loss(kind), rows()
    expected = whole(model, loss, batch)
    due = gradients(model, expected)
    total, _ = loss.total(model, batch)
    torch.testing.assert_close(total, expected, atol=0, rtol=1e-10)
    found = gradients(model, total)
    assert found.keys() == due.keys()
    for key, gradient in due.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(loss.total(model, batch)[0], expected, atol=0, rtol=1e-10)


@pytest.mark.parametrize("name", ["head trains", "LoRA on the head", "head is frozen"])
def test_in_half_precision_all_gradients_arrive(name: str) -> None:
    """What autocast casts without a gradient must not be used where there is one."""
    model, loss, batch = make(name).float(), make_loss("plain"), rows()
    with torch.autocast("cpu", torch.bfloat16):
        due = whole(model, loss, batch)
    expected = gradients(model, due)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = loss.total(model, batch)
    found = gradients(model, total)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        room = 0.05 * float(gradient.abs().max())
        torch.testing.assert_close(found[key], gradient, atol=room, rtol=0.05)


def test_weights_that_take_no_part_get_no_gradient() -> None:
    model, loss, batch = make("head trains"), make_loss("plain"), rows()
    model.lm_head.register_parameter("idle", nn.Parameter(torch.zeros(3).double()))
    loss.total(model, batch)[0].backward()
    assert model.lm_head.idle.grad is None
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_a_head_that_draws_is_called_once() -> None:
    """What is dropped by chance is dropped at all positions alike."""
    model, loss, batch = make("head trains").train(), make_loss("plain"), rows()
    calls: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: torch.rand(1) and None)
    loss.total(model, batch)
    model.lm_head.register_forward_hook(lambda _, args, out: calls.append(out.shape[1]))
    loss.total(model, batch)
    assert calls == [int(batch["labels"][:, 1:].ne(-100).sum())]


def test_evaluation_takes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, batch = make("head trains"), make_loss("plain"), rows()
    monkeypatch.setattr(torch.autograd, "grad", None)
    with torch.no_grad():
        loss.total(model, batch)


def test_no_more_logits_than_those_of_a_chunk() -> None:
    model, loss, batch = make("head trains"), make_loss("plain"), rows()
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda _, args, out: sizes.append(out.shape[1]))
    loss.total(model, batch)
    labelled = int(batch["labels"][:, 1:].ne(-100).sum())
    assert max(sizes[1:]) <= 7  # the first call is the trial whether the head is plain
    assert sum(sizes) - sizes[0] == labelled


@pytest.mark.parametrize("name", ["logits are capped", "logits are scaled"])
def test_what_is_done_after_the_head_is_done(name: str) -> None:
    """Their own forward pass makes the logits, of labelled positions alone."""
    model, batch = make(name), rows()
    shapes: list[Any] = []
    model.lm_head.register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    make_loss("plain").total(model, batch)
    assert shapes[-1] == (1, int(batch["labels"][:, 1:].ne(-100).sum()), WORDS)


def test_rows_without_a_label() -> None:
    model, loss, batch = make("head trains"), make_loss("plain"), rows()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    total, _ = loss.total(model, batch)
    assert total.item() == 0
    assert all(not one.any() for one in gradients(model, total).values())


def test_the_trial_uses_up_no_random_number() -> None:
    model, batch = make("head trains").train(), rows()
    state = torch.get_rng_state()
    summed_at_labels(model, batch, lambda logits, labels: logits.sum())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_a_head_of_words_is_run_whole() -> None:
    """Of one's own, say: there is no head to be called."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make("head trains").model
            self.words = nn.Linear(32, WORDS).double()

        def forward(self, **batch: Tensor) -> Any:
            hidden = self.inner(**batch).last_hidden_state
            return transformers.modeling_outputs.CausalLMOutput(logits=self.words(hidden))

    model, loss, batch = Own(), make_loss("plain"), rows()
    torch.testing.assert_close(loss.total(model, batch)[0], whole(model, loss, batch))


def test_gradients_that_must_be_scaled_are_not_taken_at_once() -> None:
    """What float16 cannot hold is finite behind a small enough scale, as without chunks."""
    model, loss, batch = make("head trains").float(), make_loss("plain"), rows()
    batch["labels"] = torch.full_like(batch["labels"], 3)
    with torch.no_grad():
        model.model.norm.weight.mul_(8e3)
        model.lm_head.weight.mul_(1e-4)
    for scale, fits in ((1.0, False), (1e-3, True)):
        with torch.autocast("cpu", torch.float16):
            due, (total, _) = whole(model, loss, batch), loss.total(model, batch)
        expected, found = (gradients(model, scale * one) for one in (due, total))
        assert all(one.isfinite().all() for one in expected.values()) == fits
        if fits:
            for key, one in expected.items():
                torch.testing.assert_close(found[key], one, msg=key)
