# SPDX-License-Identifier: Apache-2.0
"""A model whose frozen layers are left out against the whole model: answers and gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn

from hftune.models.layer_stack import StackError
from hftune.models.pooling import pool_by_mean
from hftune.speed.find_frozen_layers import find_frozen_layers, why_nothing_is_frozen
from hftune.speed.frozen_layers import FrozenLayers, row_digest, row_digests, skip_frozen_layers
from hftune.speed.fused_lora import fused_lora
from hftune.speed.padding_free import padding_free
from tests.speed.families import FAMILIES, LENGTHS, SIZES, answer, layers_of, make, rows

pytestmark = pytest.mark.filterwarnings("ignore")  # what families say of ids beyond the tiny words
BERT = "BertForSequenceClassification"
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
#: DeBERTa is not packed, but its layers can be left out.
EVERY = {**FAMILIES, "DebertaV2ForSequenceClassification": SIZES}


def frozen(name: str, layers: int | None = None, **more: Any) -> Any:
    """A model of which the upper layers train, and what is not its frozen_layers."""
    model = make(name, EVERY[name], **more)
    stack = layers_of(model)
    model.base_model.requires_grad_(False)
    for layer in stack[len(stack) // 2 if layers is None else layers :]:
        layer.requires_grad_(True)
    return model


def known(frozen_layers: FrozenLayers, batch: dict[str, Tensor]) -> dict[bytes, Tensor]:
    """The states of each row, computed alone and without padding."""
    found = {}
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        alone = {"input_ids": ids[mask][None], "attention_mask": mask[mask][None].long()}
        with torch.no_grad():
            found[row_digest(ids[mask].numpy())] = frozen_layers.states(alone)
    return found


def looked_up(states: dict[bytes, Tensor]) -> Callable[[Sequence[bytes]], Tensor | None]:
    def lookup(digests: Sequence[bytes]) -> Tensor | None:
        found = [states.get(digest) for digest in digests]
        return None if None in found else torch.cat(found)  # type: ignore[arg-type]

    return lookup


def spoil(frozen_layers: FrozenLayers) -> None:
    """Overwrite the frozen layers with numbers that no result could come from."""
    for part in frozen_layers.layers[: frozen_layers.frozen]:
        for parameter in part.parameters():
            nn.init.constant_(parameter, float("nan"))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", EVERY)
def test_answers_and_gradients_are_those_of_the_whole_model(name: str, packed: bool) -> None:
    model = frozen(name)
    again = rows(model)
    order = torch.tensor([2, 0, 3, 0, 1])  # one row twice
    batch = {key: value[order] for key, value in again.items()}
    with padding_free(model, True) if packed and name in FAMILIES else nullcontext():
        logits, gradients = answer(model, batch)
        frozen_layers = find_frozen_layers(model)
        assert (frozen_layers.frozen, frozen_layers.first_alone) == (
            len(layers_of(model)) // 2,
            False,
        )
        lookup = looked_up(known(frozen_layers, again))
        spoil(frozen_layers)
        with skip_frozen_layers(frozen_layers, lookup):
            kept, of_kept = answer(model, batch)
    largest = float(logits.abs().max())
    torch.testing.assert_close(kept, logits, atol=1e-6 * largest, rtol=1e-5)
    assert gradients.keys() == of_kept.keys()
    assert gradients
    most = max(float(one.abs().max()) for one in gradients.values())
    for key, one in gradients.items():
        torch.testing.assert_close(of_kept[key], one, atol=1e-5 * most, rtol=0)
    assert not any("forward" in vars(part) for part in model.modules())
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("name", [BERT, "DistilBertForSequenceClassification",
                                  "RobertaForTokenClassification",
                                  "LlamaForSequenceClassification"])  # fmt: skip
def test_a_head_alone_has_its_own_gradients(name: str) -> None:
    model = frozen(name, layers=len(layers_of(make(name, EVERY[name]))))
    batch = rows(model)
    logits, gradients = answer(model, batch)
    frozen_layers = find_frozen_layers(model)
    states = known(frozen_layers, batch)
    first = name in (BERT, "DistilBertForSequenceClassification")
    assert frozen_layers.first_alone == first
    assert [len(one) for one in states.values()] == [1 if first else size for size in LENGTHS]
    spoil(frozen_layers)
    with skip_frozen_layers(frozen_layers, looked_up(states)):
        kept, of_kept = answer(model, batch)
    torch.testing.assert_close(kept, logits, atol=1e-5, rtol=1e-5)
    for key, one in gradients.items():
        torch.testing.assert_close(of_kept[key], one, atol=1e-5, rtol=1e-5)


def test_rows_that_are_mixed_up_are_seen() -> None:
    """What the tests above compare is not the same whatever the states are."""
    model = frozen(BERT, layers=2)
    batch = rows(model)
    logits, _ = answer(model, batch)
    frozen_layers = find_frozen_layers(model)
    states = known(frozen_layers, batch)
    wrong = dict(zip(states, [*states.values()][1:] + [*states.values()][:1], strict=True))
    with skip_frozen_layers(frozen_layers, looked_up(wrong)):
        kept, _ = answer(model, batch)
    assert float((kept - logits).abs().max()) > 1e-2


def test_a_lora_of_the_upper_layers_leaves_the_lower_ones_out() -> None:
    model = make("LlamaForCausalLM", FAMILIES["LlamaForCausalLM"])
    tuned = get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", layers_to_transform=[1], target_modules=["q_proj"],
                   init_lora_weights=False),
    ).eval()  # fmt: skip
    assert why_nothing_is_frozen(tuned) is None
    batch = rows(model)
    logits, gradients = answer(tuned, batch)
    frozen_layers = find_frozen_layers(tuned)
    assert frozen_layers.frozen == 1
    lookup = looked_up(known(frozen_layers, batch))
    spoil(frozen_layers)
    with skip_frozen_layers(frozen_layers, lookup):
        kept, of_kept = answer(tuned, batch)
    torch.testing.assert_close(kept, logits, atol=1e-6, rtol=1e-5)
    assert set(gradients) == set(of_kept) != set()


@pytest.fixture
def served() -> Iterator[tuple[Any, FrozenLayers, list[Sequence[bytes]]]]:
    """A model whose lower layer is left out, and what was looked up."""
    model = frozen("LlamaForCausalLM")
    frozen_layers, asked = find_frozen_layers(model), list[Sequence[bytes]]()
    lookup = looked_up(known(frozen_layers, rows(model)))

    def noted(digests: Sequence[bytes]) -> Tensor | None:
        asked.append(digests)
        return lookup(digests)

    with skip_frozen_layers(frozen_layers, noted):
        yield model, frozen_layers, asked


def other_rows(model: Any) -> dict[str, Any]:
    batch = rows(model)
    return {**batch, "input_ids": batch["input_ids"].roll(1, 1)}


def on_the_left(model: Any) -> dict[str, Any]:
    return rows(model, left=True)


def shown(model: Any) -> dict[str, Any]:
    return {**rows(model), "output_hidden_states": True}


def with_a_cache(model: Any) -> dict[str, Any]:
    return {**rows(model), "use_cache": True}


def with_positions(model: Any) -> dict[str, Any]:
    batch = rows(model)
    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None] * 2}


@pytest.mark.parametrize(
    "given",
    [other_rows, on_the_left, shown, with_a_cache, with_positions],
    ids=lambda f: f.__name__,
)
def test_any_other_pass_runs_whole(given: Callable[..., Any], served: Any) -> None:
    model, _, asked = served
    kept = model(**given(model))
    whole = frozen("LlamaForCausalLM")(**given(model))
    assert torch.equal(kept.logits, whole.logits)
    if given is shown:
        assert all(map(torch.equal, kept.hidden_states, whole.hidden_states))
    if given is with_a_cache:
        assert kept.past_key_values.get_seq_length() == max(LENGTHS)
    assert len(asked) == (given is other_rows)


def test_a_trunk_that_begins_to_train_runs_whole(served: Any) -> None:
    model, frozen_layers, asked = served
    model(**rows(model))
    assert len(asked) == 1
    frozen_layers.layers[0].requires_grad_(True)
    _, gradients = answer(model, rows(model))
    assert len(asked) == 1
    assert any(".layers.0." in name for name in gradients)


def test_gradients_are_recomputed_above_what_is_left_out() -> None:
    model = frozen("Qwen2ForCausalLM").train()
    batch = rows(model)
    _, gradients = answer(model, batch)
    frozen_layers = find_frozen_layers(model)
    lookup = looked_up(known(frozen_layers, batch))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with skip_frozen_layers(frozen_layers, lookup):
        _, of_kept = answer(model, batch)
    for name, one in gradients.items():
        torch.testing.assert_close(of_kept[name], one, atol=1e-6, rtol=1e-4)


def test_dropout_is_seen_and_held_still_if_asked() -> None:
    model = frozen(BERT, layers=2, classifier_dropout=0.0)
    assert not find_frozen_layers(model).exact
    assert find_frozen_layers(frozen(BERT, **OFF)).exact
    frozen_layers, batch = find_frozen_layers(model), rows(model)
    still, _ = answer(model, batch)
    model.train()
    with skip_frozen_layers(frozen_layers, lambda digests: None):
        assert not torch.allclose(answer(model, batch)[0], still)
    with skip_frozen_layers(frozen_layers, lambda digests: None, still=True):
        torch.testing.assert_close(answer(model, batch)[0], still)
    with skip_frozen_layers(frozen_layers, looked_up(known(frozen_layers, batch))):
        torch.testing.assert_close(answer(model.train(), batch)[0], still)


def test_a_head_that_reads_the_mean_or_nothing_yet_is_given_all_tokens() -> None:
    model = frozen(BERT, layers=2, **OFF)
    pool_by_mean(model)
    assert not find_frozen_layers(model).first_alone
    model = frozen(BERT, layers=2, **OFF)
    nn.init.zeros_(model.classifier.weight)
    assert not find_frozen_layers(model).first_alone


def test_the_fingerprint_is_that_of_what_is_left_out() -> None:
    def of(model: Any) -> str:
        return find_frozen_layers(model).fingerprint()

    first = of(frozen("LlamaForCausalLM"))
    same = frozen("LlamaForCausalLM", id2label={0: "a", 1: "b"})
    nn.init.ones_(layers_of(same)[1].mlp.up_proj.weight)
    nn.init.ones_(same.lm_head.weight)
    assert of(same) == first
    other = frozen("LlamaForCausalLM")
    with torch.no_grad():
        layers_of(other)[0].mlp.up_proj.weight[3, 5] += 1e-6
    rotated = frozen(
        "LlamaForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    embedded = frozen("LlamaForCausalLM")
    nn.init.ones_(embedded.model.embed_tokens.weight)
    assert len({first, *map(of, (other, rotated, embedded)), of(frozen(BERT))}) == 5


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"]),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["lora", "ia3"],
)
def test_the_fingerprint_knows_frozen_adapters_and_the_weights_beneath(config: Any) -> None:
    """Also of modules whose weights are read by others, and which are never called."""

    def of(*moved: str) -> str:
        torch.manual_seed(0)
        model = get_peft_model(make("LlamaForCausalLM", FAMILIES["LlamaForCausalLM"]), config)
        model.requires_grad_(False)
        model.get_base_model().lm_head.requires_grad_(True)
        for name, weight in model.named_parameters():
            if any(part in name for part in moved):
                nn.init.constant_(weight, 0.5)
        with fused_lora(model):
            return find_frozen_layers(model).fingerprint()

    adapter = "lora_B" if isinstance(config, LoraConfig) else "ia3_l"
    assert len({of(), of(adapter), of("layers.0.self_attn.q_proj")}) == 3


def test_a_model_without_a_table_of_tokens_is_looked_at_all_the_same() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 64}  # fmt: skip
    model = transformers.CanineForSequenceClassification(transformers.CanineConfig(**sizes))
    assert "nothing is frozen" in str(why_nothing_is_frozen(model))


def test_a_row_is_told_by_all_that_is_read_of_it() -> None:
    ids = torch.tensor([[5, 6, 7], [5, 6, 0], [5, 6, 7]])
    here = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
    types = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1]])
    first, shorter, typed = row_digests({"input_ids": ids, "token_type_ids": types}, here)
    assert len({first, shorter, typed}) == 3
    one, _, other = row_digests({"input_ids": ids}, here)
    assert one == other == row_digest(ids[0].numpy())


NOTHING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "all trains": (lambda: make(BERT, SIZES), "nothing is frozen"),
    "embeddings train": (
        lambda: (model := frozen(BERT)).bert.embeddings.requires_grad_(True) and model,
        "nothing is frozen",
    ),
    "virtual tokens": (
        lambda: get_peft_model(
            make("LlamaForCausalLM", FAMILIES["LlamaForCausalLM"]),
            PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        ),
        "virtual tokens train",
    ),
    "a decoder": (
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=9)
        ),
        "a decoder that looks at an encoder",
    ),
    "no model": (lambda: nn.Linear(2, 2), "no model of Transformers"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING)
def test_where_nothing_can_be_left_out(case: str) -> None:
    make_model, says = NOTHING[case]
    assert says in str(why_nothing_is_frozen(make_model()))


def test_a_model_that_reads_its_embeddings_elsewhere_is_refused() -> None:
    """Its trial tells, before any row is kept."""
    model = frozen("LlamaForCausalLM")
    norm = model.model.norm

    def add_embeddings(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + seen[-1]

    seen: list[Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, output: seen.append(output))
    norm.register_forward_hook(add_embeddings)
    with pytest.raises(StackError, match="cannot do without its frozen layers: their answers are"):
        find_frozen_layers(model)
