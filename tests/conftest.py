# SPDX-License-Identifier: Apache-2.0
"""Tiny random models with real tokenizers, and rows to train them on."""

import gc
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from tests.warm_python import WarmPython

if TYPE_CHECKING:
    from hftune import Recipe

COLOURS = ["red", "green", "blue"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
WORDS = ["alpha", "beta", "gamma", "delta", *COLOURS, *NUMBERS]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # keywords hold names of folders, too
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """Take what imports made out of garbage collection: each training collects, half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _single_thread() -> None:
    """Tiny models run faster so, and sums have one order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write pictures empty unless the test is marked ``draws``: a third of a short training."""
    from matplotlib.figure import Figure

    def save_blank(figure: Figure, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"blank")

    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("draws") is None:
            patch.setattr(Figure, "savefig", save_blank)
        yield


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Start processes that have torch already."""
    with WarmPython() as started:
        yield started


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT without a classification head, without dropout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("models") / "encoder"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama, bytes as tokens, and a chat template without generation marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("models") / "decoder"
    special = ["<|pad|>", "<|eos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        additional_special_tokens=special[2:],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build_seq2seq(folder: Path, kind: str) -> Path:
    """A small T5, BART or Marian without dropout; words as tokens, EOS behind every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        AutoModelForSeq2SeqLM,
        BartConfig,
        MarianConfig,
        PreTrainedTokenizerFast,
        T5Config,
        set_seed,
    )

    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    ).save_pretrained(folder)
    set_seed(0)
    shared = {"vocab_size": len(vocabulary), "d_model": 32, "pad_token_id": 0, "eos_token_id": 1}
    layers = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "init_std": 0.2,
        "forced_eos_token_id": None,
    }
    if kind == "t5":
        config: Any = T5Config(
            **shared, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0, feed_forward_proj="gated-gelu",
        )  # fmt: skip
    elif kind == "bart":
        config = BartConfig(**shared, **layers, bos_token_id=1, decoder_start_token_id=1)
    else:
        config = MarianConfig(**shared, **layers, decoder_start_token_id=0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def seq2seq_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoder-decoders by kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: build_seq2seq(root / kind, kind) for kind in ("t5", "bart", "marian")}


@pytest.fixture(scope="session")
def tiny_seq2seq(seq2seq_models: dict[str, Path]) -> Path:
    """A two-layer T5."""
    return seq2seq_models["t5"]


@pytest.fixture(scope="session")
def seq2seq_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty ragged texts; the target is the text without its first word."""
    rows = []
    for index in range(60):
        words = [WORDS[(index * (3 + step) + step) % 15] for step in range(2 + index % 4)]
        rows.append({"text": " ".join(words), "target": " ".join(words[1:])})
    return _write(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def labelled_rows() -> list[dict[str, str]]:
    """Ragged texts whose label is their first colour; 60 rows, classes of 30, 20 and 10."""
    colours = ["red"] * 30 + ["green"] * 20 + ["blue"] * 10
    rows = []
    for index, colour in enumerate(colours):
        others = [WORDS[(index * step) % 4] for step in range(1, 2 + index % 6)]
        rows.append({"text": " ".join([*others, colour, WORDS[7 + index % 8]]), "label": colour})
    return rows


@pytest.fixture(scope="session")
def labelled_file(tmp_path_factory: pytest.TempPathFactory, labelled_rows: list[dict]) -> Path:
    """The labelled rows as jsonl."""
    return _write(tmp_path_factory.mktemp("data") / "labelled.jsonl", labelled_rows)


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty conversations of one or two turns."""
    rows = []
    for index in range(40):
        turns = [
            {"role": "user", "content": f"{WORDS[index % 15]} {index}?"},
            {"role": "assistant", "content": " ".join(WORDS[: 1 + index % 5])},
        ]
        if index % 2:
            turns += [
                {"role": "user", "content": "more"},
                {"role": "assistant", "content": WORDS[index % 7]},
            ]
        rows.append({"messages": turns})
    return _write(tmp_path_factory.mktemp("data") / "chat.jsonl", rows)


def _write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tagged_file(tmp_path_factory: pytest.TempPathFactory, labelled_rows: list[dict]) -> Path:
    """The words of the labelled rows: a colour begins an entity, a number goes on with it."""
    rows = []
    for row in labelled_rows:
        tokens = row["text"].split()
        tags = ["B-x" if word in COLOURS else "I-x" if word in NUMBERS else "O" for word in tokens]
        rows.append({"tokens": tokens, "tags": tags})
    return _write(tmp_path_factory.mktemp("data") / "tagged.jsonl", rows)


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Return what makes writing more bytes than it is given into a file fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def make_recipe(
    tmp_path: Path,
    tiny_encoder: Path,
    tiny_decoder: Path,
    tiny_seq2seq: Path,
    labelled_file: Path,
    tagged_file: Path,
    chat_file: Path,
    seq2seq_file: Path,
) -> Callable[..., "Recipe"]:
    """Build a recipe for a tiny model: ``make_recipe(task, method, sgd steps ...)``."""
    from hftune import Recipe

    places = {
        "text-classification": (tiny_encoder, labelled_file),
        "token-classification": (tiny_encoder, tagged_file),
        "text-generation": (tiny_decoder, chat_file),
        "text2text-generation": (tiny_seq2seq, seq2seq_file),
    }

    def build(
        task: str = "text-classification", training: dict | None = None, **sections: Any
    ) -> Recipe:
        model, data = places[task]
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
        }
        whole = {
            "task": task,
            "model": {"path": str(model)},
            "data": {"path": str(data)},
            "method": "full",
            **sections,
        }
        return Recipe(**whole, training={**defaults, **(training or {})})

    return build
