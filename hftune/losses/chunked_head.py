# SPDX-License-Identifier: Apache-2.0
"""The head of a language model: only where there is a label, and a few positions at a time.

Logits of a whole batch are its largest tensor by far: tokens times vocabulary, three times over
with the loss and its gradient. Here the hidden states at labelled positions alone reach the head,
in chunks, and the gradient of a chunk is taken as soon as its loss is known, so that no more than
one chunk's logits exist. The sum is the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hftune.core.cost import StepCost
from hftune.losses.loss import Batch, aligned, counted, forward, in_full, targets

#: Logits of a chunk: 64 MiB in float32; on a GPU 512, for each chunk is a pass over the head, too.
CHUNK, CHUNK_ON_GPU = 2**24, 2**27

#: Logits ``(N, C)`` and labels ``(N,)`` to a sum, shape ``()``.
SummedLoss = Callable[[Tensor, Tensor], Tensor]

#: Whether a head can work in chunks, in training and in evaluation.
_plain: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()


#: Whether somebody else reads the logits, too.
_wanted_whole: ContextVar[bool] = ContextVar("whole_logits", default=False)


@contextmanager
def whole_logits() -> Iterator[None]:
    """Have the outputs of :func:`summed_at_labels` hold the logits of all positions."""
    before = _wanted_whole.set(True)
    try:
        yield
    finally:
        _wanted_whole.reset(before)


def summed_at_labels(model: nn.Module, inputs: Batch, loss: SummedLoss) -> tuple[Tensor, Any]:
    """Run a causal language model and return the summed loss, shape ``()``, and its outputs.

    Args:
        model: Also wrapped, or with an adapter. Its outputs hold logits of some positions at most,
            but for :func:`whole_logits`.
        inputs: With ``labels``, shape ``(B, T)``.
        loss: Of any positions; what it returns for all is the sum over parts.
    """
    whole = _wanted_whole.get() or _scales_gradients(inputs["labels"].device.type)
    base = None if whole else _callable_alone(model)
    if base is None:
        outputs = forward(model, inputs)
        return loss(*aligned(outputs.logits, inputs["labels"], causal=True)), outputs
    head: nn.Module = base.get_output_embeddings()
    labels = targets(inputs["labels"], causal=True)
    here = counted(labels)
    plain = _is_plain(base, head, inputs)
    reached: list[Tensor] = []

    def select(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        start = args[0].shape[1] - inputs["labels"].shape[1]  # behind virtual tokens
        reached.append(args[0][:, start : start + labels.shape[1]][here])
        return (reached[0][None, :0] if plain else reached[0][None],)

    hook = head.register_forward_pre_hook(select)
    try:
        outputs = forward(model, inputs)
    finally:
        hook.remove()
    if not plain:
        return loss(in_full(outputs.logits[0]), labels[here]), outputs
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    trained = trained if torch.is_grad_enabled() else []
    chunk = chunk_size(on_cpu=reached[0].device.type == "cpu")
    at_once = max(chunk // base.config.get_text_config().vocab_size, 1)
    apply: Any = _InChunks.apply
    return apply(head, loss, at_once, labels[here], reached[0], *trained), outputs


def chunk_size(*, on_cpu: bool) -> int:
    """Return how many logits there are at once."""
    return CHUNK if on_cpu else CHUNK_ON_GPU


def in_chunks(cost: StepCost) -> StepCost:
    """Return the cost of a loss whose logits :func:`summed_at_labels` computes.

    Beside a chunk of logits there are hidden states twice more: of the labelled positions, and
    their gradient.
    """
    return replace(cost, logits="chunked", hidden_copies=cost.hidden_copies + 2)


class _InChunks(torch.autograd.Function):
    """The summed loss behind a head, whose gradient is computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        head: nn.Module,
        loss: SummedLoss,
        at_once: int,
        labels: Tensor,
        hidden: Tensor,
        *trained: nn.Parameter,
    ) -> Tensor:
        of_hidden, of_head = ctx.needs_input_grad[4], bool(trained)
        rows: list[Tensor] = []
        sums: list[Tensor | None] = [None] * len(trained)  # of what takes part in the pass
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        parts = zip(hidden.split(at_once), labels.split(at_once), strict=True)
        for number, (part, meant) in enumerate(parts):
            known = part.detach().requires_grad_(of_hidden)
            with torch.set_grad_enabled(of_hidden or of_head):
                value = loss(in_full(head(known[None])[0]), meant)
            total += value.detach()
            if of_hidden or of_head:
                wanted = [known, *trained] if of_hidden else trained
                found = torch.autograd.grad(value, wanted, allow_unused=True)
                rows += found[: int(of_hidden)]
                add = _add if number < 2 else _add_to  # from then on it is a tensor of our own
                sums = list(map(add, sums, found[int(of_hidden) :]))
        ctx.of_hidden = of_hidden
        ctx.save_for_backward(*([torch.cat(rows)] if of_hidden else []), *sums)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradients = [one if one is None else one * upstream[0] for one in ctx.saved_tensors]
        return None, None, None, None, *([] if ctx.of_hidden else [None]), *gradients


def _callable_alone(model: nn.Module) -> Any:
    """Return the model of Transformers inside, if its head can be called on its own.

    None where it cannot: in a compiled model, or held in pieces.
    """
    for part in model.modules():
        if isinstance(part, OptimizedModule):
            return None
        if isinstance(part, PreTrainedModel):
            head = part.get_output_embeddings()
            alone = head is not None and not any(map(_is_sharded, head.parameters()))
            return part if alone else None
    return None


def _scales_gradients(device: str) -> bool:
    """Tell whether the loss must be scaled before backward; gradients of a chunk are not."""
    in_half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return torch.is_grad_enabled() and in_half == torch.float16


def _is_plain(base: PreTrainedModel, head: nn.Module, inputs: Batch) -> bool:
    """Tell whether a model returns its head's output unchanged, and the head is deterministic.

    Some models scale or cap it, which numbers of ours in its place tell; what is dropped by chance
    must be the same at all positions.
    """
    known = _plain.setdefault(head, {})
    if head.training not in known:
        returned: list[Tensor] = []
        states: list[Tensor] = []
        ids = inputs["input_ids"][:1, :2]
        devices = [] if ids.device.type == "cpu" else [ids.device]

        def note(_: nn.Module, args: Any) -> None:
            states.append(torch.get_rng_state() if not devices else _device_state(ids.device))

        def replace(_: nn.Module, args: Any, logits: Tensor) -> Tensor:
            note(head, args)
            returned.append(torch.linspace(-99, 99, logits.numel()).view_as(logits).to(logits))
            return returned[0]

        first = head.register_forward_pre_hook(note, prepend=True)  # before what others hooked on
        hooks = [first, head.register_forward_hook(replace)]
        try:
            # No draw of the run is used up.
            with torch.no_grad(), torch.random.fork_rng(devices, device_type=ids.device.type):
                logits = base(input_ids=ids).logits
        finally:
            for hook in hooks:
                hook.remove()
            torch.clear_autocast_cache()  # what was cast here has no gradient
        known[head.training] = torch.equal(logits, returned[0]) and torch.equal(*states)
    return known[head.training]


def _device_state(device: torch.device) -> Tensor:
    """Return the state of a device's generator."""
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _add_to(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one.add_(other)


def _is_sharded(parameter: nn.Parameter) -> bool:
    """Tell whether FSDP2 or DeepSpeed shards a weight over the processes."""
    return isinstance(parameter, DTensor) or "ds_id" in vars(parameter)
