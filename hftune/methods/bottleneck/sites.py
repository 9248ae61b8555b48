# SPDX-License-Identifier: Apache-2.0
"""Where adapters go: the sublayers of a Transformer, found by the names of their layers.

Each sublayer ends in one linear layer, whose name follows the number of its block::

    post-norm (BERT, BART)                      pre-norm (GPT-2, Llama, T5, ViT)

    x ─ attention ─[H]─ + ─ norm ─ a            x ─ norm ─ attention ─[H]─ + ─ a
    └───────────────────┘                       └──────────────────────────┘
    a ─ feed-forward ─[H]─ + ─ norm ─[P]        a ─ norm ─ feed-forward ─[H,P]─ +
    └──────────────────────┘                    └───────────────────────────────┘

``[H]`` is an adapter of Houlsby's placement, ``[P]`` of Pfeiffer's. Behind a norm, Pfeiffer's reads
what comes out of the norm, and its output is added to what goes into it. The parallel placement
reads what goes into feed-forward and is added to what comes out.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hftune.methods.bottleneck.config import Placement

#: Ends of the names of what attention ends in, as regular expressions.
ATTENTION = (
    r"attention\.output\.dense",  # BERT
    r"crossattention\.output\.dense",
    r"attention\.out_lin",  # DistilBERT
    r"attention\.attn\.o",  # MPNet
    r"attention\.dense",  # ALBERT, GPT-NeoX
    r"attention\.o_proj",  # ViT, DINOv2
    r"attention\.out_proj",  # wav2vec2
    r"self_attn\.out_proj",  # BART, OPT, CLIP
    r"encoder_attn\.out_proj",
    r"self_attn\.output",  # LED
    r"self_attn\.o_proj",  # Llama, Qwen, Mistral
    r"self_attn\.dense",  # Phi
    r"self_attention\.dense",  # BLOOM, Falcon
    r"attn\.c_proj",  # GPT-2
    r"crossattention\.c_proj",
    r"attn\.out_proj",  # GPT-J, MPT
    r"attn\.attention\.out_proj",  # GPT-Neo
    r"attn\.Wo",  # ModernBERT
    r"SelfAttention\.o",  # T5
    r"EncDecAttention\.o",
)
#: What feed-forward ends in -> what it begins with.
FEED_FORWARD = {
    r"output\.dense": r"intermediate\.dense",  # BERT
    r"ffn\.lin2": r"ffn\.lin1",  # DistilBERT
    r"ffn_output": r"ffn",  # ALBERT
    r"fc2": r"fc1",  # BART, OPT
    r"mlp\.fc2": r"mlp\.fc1",  # ViT, CLIP, Phi
    r"mlp\.down_proj": r"mlp\.(up_proj|gate_up_proj)",  # Llama, Phi-3
    r"mlp\.c_proj": r"mlp\.c_fc",  # GPT-2
    r"mlp\.fc_out": r"mlp\.fc_in",  # GPT-J
    r"mlp\.dense_4h_to_h": r"mlp\.dense_h_to_4h",  # BLOOM, GPT-NeoX
    r"mlp\.Wo": r"mlp\.Wi",  # ModernBERT
    r"ffn\.down_proj": r"ffn\.up_proj",  # MPT
    r"DenseReluDense\.wo": r"DenseReluDense\.(wi|wi_0)",  # T5
    r"feed_forward\.output_dense": r"feed_forward\.intermediate_dense",  # wav2vec2
}
#: A mixture of experts is one feed-forward sublayer; its experts are no layers of their own.
EXPERTS = r"mlp\.experts"
MIXTURE = r"mlp"
#: Model type -> the norm behind feed-forward and its residual sum, where the sum goes through one.
POST_NORMS = {
    **dict.fromkeys(
        ("bert", "big_bird", "camembert", "deberta", "deberta-v2", "electra", "ernie", "layoutlm",
         "longformer", "mpnet", "roberta", "roformer", "xlm-roberta"),
        r"output\.LayerNorm",
    ),
    **dict.fromkeys(("bart", "blenderbot-small", "led", "marian", "mvp"), r"final_layer_norm"),
    "albert": r"full_layer_layer_norm",
    "distilbert": r"output_layer_norm",
    "nomic_bert": r"post_mlp_layernorm",
    "openai-gpt": r"ln_2",
}  # fmt: skip


@dataclass(frozen=True)
class Sites:
    """Where the adapters of one model go, as regular expressions over module names.

    Attributes:
        target_modules: Modules whose output the adapter is added to.
        input_modules: Modules whose input it reads, where that is not the target's own business.
    """

    target_modules: str
    input_modules: str | None = None


def find_sites(model: nn.Module, placement: Placement, model_config: dict[str, object]) -> Sites:
    """Find the sublayers of a model by the names that Transformers gives their layers.

    Args:
        model: The base model, perhaps with adapters in it already.
        placement: Which sublayers, and where.
        model_config: Its config as a dict.

    Raises:
        ValueError: The names are none that this module knows.

    Example:
        >>> mlp = nn.ModuleDict({"up_proj": nn.Linear(2, 4), "down_proj": nn.Linear(4, 2)})
        >>> model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": mlp})])})
        >>> sites = find_sites(model, "pfeiffer", {"model_type": "llama"})
        >>> bool(re.fullmatch(sites.target_modules, "layers.0.mlp.down_proj"))
        True
    """
    names = [name for name, _ in model.named_modules()]
    attention = [tail for tail in ATTENTION if _any(names, tail)]
    feed_forward = [tail for tail in FEED_FORWARD if _any(names, tail)]
    mixture = _any(names, EXPERTS)
    if mixture:
        feed_forward = [tail for tail in feed_forward if not tail.startswith(MIXTURE)]
        feed_forward.append(MIXTURE)
    wanted = {"attention": (attention, ATTENTION), "feed-forward": (feed_forward, FEED_FORWARD)}
    if placement != "houlsby":
        del wanted["attention"]
    for sublayer, (found, known) in wanted.items():
        if not found:
            raise ValueError(_not_found(model, placement, sublayer, known))
    if placement == "houlsby":
        return Sites(_pattern([*attention, *feed_forward]))
    post_norm = POST_NORMS.get(str(model_config.get("model_type")))
    if placement == "pfeiffer":
        return Sites(_pattern([post_norm] if post_norm else feed_forward))
    first = [FEED_FORWARD[tail] for tail in feed_forward if tail in FEED_FORWARD]
    return Sites(_pattern(feed_forward), _pattern(first) if first else None)


def partner(target: str, candidates: Iterable[str]) -> str:
    """Return the one of ``candidates`` that lies closest to ``target`` in the tree of modules.

    Raises:
        ValueError: None lies in the same layer, or several do.

    Example:
        >>> partner("layers.1.mlp.down", ["layers.1.mlp.up", "layers.10.mlp.up"])
        'layers.1.mlp.up'
    """
    shared = {name: _shared_parts(target, name) for name in candidates if name != target}
    closest = max(shared.values(), default=0)
    best = [name for name, parts in shared.items() if parts == closest]
    if len(best) != 1 or closest == 0:
        what = f"{len(best)} modules ({', '.join(best[:4])})" if closest else "no module"
        raise ValueError(f"input_modules: {what} to read from for {target}, and it must be one")
    return best[0]


def layer_kinds(model: nn.Module) -> list[str]:
    """Return the names of the layers inside a model's blocks, numbers left out, each once.

    Example:
        >>> block = nn.ModuleDict({"up": nn.Linear(2, 4), "down": nn.Linear(4, 2)})
        >>> layer_kinds(nn.ModuleDict({"layers": nn.ModuleList([block])}))
        ['down', 'up']
    """
    holders = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    blocks = [re.search(r"\.\d+\.(.+)", f".{name}") for name in sorted(holders)]
    return sorted({re.sub(r"\.?\b\d+\b", "", block[1]) for block in blocks if block})


def _pattern(tails: Iterable[str]) -> str:
    """Return a regular expression for these ends of names, right behind a block's number."""
    return rf"(.*\.)?\d+\.({'|'.join(tails)})"


def _any(names: Iterable[str], tail: str) -> bool:
    pattern = re.compile(_pattern([tail]))
    return any(pattern.fullmatch(name) for name in names)


def _shared_parts(one: str, other: str) -> int:
    shared = 0
    for mine, theirs in zip(one.split("."), other.split("."), strict=False):
        if mine != theirs:
            break
        shared += 1
    return shared


def _not_found(model: nn.Module, placement: str, sublayer: str, known: Iterable[str]) -> str:
    looked = ", ".join(tail.replace("\\", "") for tail in known)
    has = ", ".join(layer_kinds(model)[:40]) or "no numbered blocks"
    return (
        f"placement {placement}: no {sublayer} sublayer found; looked for layers named {looked} "
        f"behind a number, and {type(model).__name__} has {has}: name target_modules, whose output "
        "the adapter is to be added to"
    )
