# SPDX-License-Identifier: Apache-2.0
"""Packed rows: places, masks, windows and the choice of a way, by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hftune.speed import packed_attention
from hftune.speed.packed_attention import Packing, as_autocast, attend, of_like_length, way_of

HERE = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()


def patterned(seen: Callable[[Tensor, Tensor], Tensor]) -> Packing:
    """Rows of 5, 3 and no tokens whose query sees a key where ``seen(query, key)`` says so."""
    places = torch.arange(5)
    mask = seen(places[:, None], places) & HERE[:, None, :, None] & HERE[:, None, None]
    where = HERE.flatten().nonzero()[:, 0]
    return Packing(HERE, where, [5, 3], causal=False, make_mask=lambda: mask, patterned=True)


def test_places_by_hand() -> None:
    here = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    packing = Packing(here, torch.tensor([0, 1, 6]), [2, 1], causal=False)
    padded = torch.arange(9.0).view(3, 3, 1)
    assert packing.pack(padded).flatten().tolist() == [0, 1, 6]
    assert packing.pack(torch.tensor([[10, 11, 12]])).tolist() == [[10, 11, 10]]
    assert packing.unpack(packing.pack(padded)).flatten().tolist() == [0, 1, 0, 0, 0, 0, 6, 0, 0]


@pytest.mark.parametrize(
    ("seen", "window"),
    [
        (lambda q, k: (k <= q) & (q - k < 2), (1, 0)),
        (lambda q, k: (q - k).abs() <= 2, (2, 2)),
        (lambda q, k: (k <= q) & (q - k < 100), (4, 0)),
        (lambda q, k: (k <= q) & (q // 2 == k // 2), None),
        (lambda q, k: (k <= q) & ((q - k) % 2 == 0), None),
    ],
    ids=["before", "both sides", "wider than the rows", "chunks", "every other"],
)
def test_windows_by_hand(
    seen: Callable[[Tensor, Tensor], Tensor], window: tuple[int, int] | None
) -> None:
    packing = patterned(seen)
    assert [tuple(mask.shape) for mask in packing.masks] == [(1, 1, 5, 5), (1, 1, 3, 3)]
    assert packing.window == window


def test_a_hole_in_a_row_is_no_window() -> None:
    """Its tokens move together, and how far each sees is no longer one number."""
    here = torch.tensor([[1, 1, 0, 1, 1]]).bool()
    later = torch.arange(5) - torch.arange(5)[:, None]
    mask = ((later <= 0) & (later > -2) & here)[None, None]
    where = here.flatten().nonzero()[:, 0]
    packing = Packing(here, where, [4], causal=False, make_mask=lambda: mask, patterned=True)
    assert packing.window is None


@pytest.mark.parametrize(("causal", "window"), [(True, (-1, 0)), (False, (-1, -1))])
def test_plain_rows_have_no_bounds(causal: bool, window: tuple[int, int]) -> None:
    assert Packing(HERE, HERE.flatten().nonzero()[:, 0], [5, 3], causal=causal).window == window


def test_a_cpu_takes_row_by_row_and_with_dropout_those_of_like_length_together() -> None:
    packing = Packing(HERE, HERE.flatten().nonzero()[:, 0], [5, 3], causal=True)
    query = torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16)
    assert way_of(query, query, 0.0, packing) == "rows"
    assert way_of(query, query, 0.1, packing) == "alike"


@pytest.mark.parametrize(
    ("lengths", "spare", "groups"),
    [
        ([5, 3, 5], 0, [[0, 2], [1]]),
        ([5, 3, 5], 16, [[0, 2, 1]]),  # 5 * 5 - 3 * 3
        ([5, 3, 5], 15, [[0, 2], [1]]),
        ([2, 4, 3, 1], 10, [[1, 2], [0, 3]]),  # 7 wasted, 12 more are too much, 3 are not
        ([7], 0, [[0]]),
        ([], 0, []),
    ],
)
def test_rows_of_like_length_by_hand(
    lengths: list[int], spare: int, groups: list[list[int]]
) -> None:
    assert of_like_length(lengths, spare) == groups


def test_what_is_alike_is_laid_out_by_hand() -> None:
    packing = Packing(HERE, HERE.flatten().nonzero()[:, 0], [5, 3], causal=False)
    (group,) = packing.alike
    assert group.tokens.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 5, 5]]
    assert group.inside.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert group.bias is not None
    assert (group.bias == 0).tolist() == group.inside[:, None].tolist()
    tokens, there = packing.gathered
    assert there.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert tokens[there].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    equal = Packing(HERE[[0, 0]], torch.arange(10), [5, 5], causal=False)
    assert [group.bias for group in equal.alike] == [None]


def test_dropout_leaves_out_weights_of_a_row_and_scales_the_rest() -> None:
    """Equal scores, and values that tell the tokens apart: what comes out is the weights."""
    torch.manual_seed(0)
    lengths, heads, share = [40, 40, 30], 8, 0.25
    here = torch.arange(40) < torch.tensor(lengths)[:, None]
    packing = Packing(here, here.flatten().nonzero()[:, 0], lengths, causal=False)
    query, value = torch.zeros(1, heads, 110, 110), torch.eye(110).expand(1, heads, 110, 110)
    weights, _ = attend(torch.nn.Module(), query, query, value, packing, share)
    start = 0
    for length in lengths:
        row = slice(start, start + length)
        start += length
        seen = weights[0, row, :, row]
        kept = seen != 0
        assert weights[0, row].count_nonzero() == kept.sum(), "it sees other rows"
        expected = torch.full((int(kept.sum()),), 1 / length / (1 - share))
        torch.testing.assert_close(seen[kept], expected)
        error = (share * (1 - share) / kept.numel()) ** 0.5
        assert abs(float((~kept).float().mean()) - share) < 4 * error
        assert not torch.equal(kept[:, 0], kept[:, 1]), "all heads lose the same"
    first, second = weights[0, :40, :, :40], weights[0, 40:80, :, 40:80]
    assert not torch.equal(first, second), "rows of one call lose the same"


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.02), (torch.float64, 1e-12)])
@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_like_length_in_other_precisions(
    dtype: torch.dtype, error: float, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bias is in single precision; what comes out is in that of the values."""
    torch.manual_seed(0)
    packing = Packing(HERE, HERE.flatten().nonzero()[:, 0], [5, 3], causal=causal)
    parts = torch.randn(3, 1, 2, 8, 16, dtype=torch.float64)
    expected, _ = attend(torch.nn.Module(), *parts, packing)
    monkeypatch.setattr(packed_attention, "way_of", lambda *_: "alike")
    taken, _ = attend(torch.nn.Module(), *parts.to(dtype), packing)
    assert taken.dtype == dtype
    torch.testing.assert_close(taken.double(), expected, atol=error, rtol=0)


def test_autocast_reaches_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary embeddings leave single precision, which ``scaled_dot_product_attention`` would cast.

    The tensors of a GPU have no data here, and there is no autocast for them: its word is given.
    """
    with FakeTensorMode():
        single = torch.zeros(2, device="cuda")
        parts = single, single.bfloat16()
        assert [part.dtype for part in as_autocast(*parts)] == [torch.float32, torch.bfloat16]
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
        assert {part.dtype for part in as_autocast(*parts)} == {torch.bfloat16}
    assert as_autocast(torch.zeros(2))[0].dtype == torch.float32  # row by row, as it comes


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "width", "dropout", "seen", "way"),
    [
        (torch.bfloat16, 64, 0.0, lambda q, k: q - k < 2, "flash"),
        (torch.float16, 64, 0.0, lambda q, k: q - k < 2, "flash"),
        (torch.float32, 64, 0.0, lambda q, k: q - k < 2, "padded"),
        (torch.bfloat16, 64, 0.1, lambda q, k: q - k < 2, "padded"),
        (torch.bfloat16, 60, 0.0, lambda q, k: q - k < 2, "padded"),
        (torch.bfloat16, 512, 0.0, lambda q, k: q - k < 2, "padded"),
        (torch.bfloat16, 64, 0.0, lambda q, k: q // 2 == k // 2, "padded"),
    ],
)
def test_a_gpu_takes_its_kernel_where_that_knows_the_case(
    dtype: torch.dtype,
    width: int,
    dropout: float,
    seen: Callable[[Tensor, Tensor], Tensor],
    way: str,
) -> None:
    query = torch.zeros(1, 2, 8, width, dtype=dtype, device="cuda")
    packing = patterned(lambda q, k: (k <= q) & seen(q, k))
    assert way_of(query, query, dropout, packing) == way


@pytest.mark.gpu
def test_values_of_another_width_are_padded() -> None:
    query = torch.zeros(1, 2, 8, 64, dtype=torch.bfloat16, device="cuda")
    packing = Packing(HERE.cuda(), HERE.flatten().nonzero()[:, 0].cuda(), [5, 3], causal=True)
    assert way_of(query, query, 0.0, packing) == "flash"
    assert way_of(query, query[..., :32], 0.0, packing) == "padded"
