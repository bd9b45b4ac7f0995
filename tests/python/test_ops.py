"""The operators under torch.ops.tabes as PyTorch sees them: schemas, fakes and derivatives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tabes  # noqa: F401  -- registers the operators
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.usefixtures("one_thread")

ops = torch.ops.tabes


def leaf(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()


# Three sequences, one of them without active rows.
LENGTHS = (5, 3, 4)
ACTIVE = ([0, 3, 4], [], [1, 2])
SEQLENS = list(itertools.accumulate(LENGTHS, initial=0))
CU_ACTIVE = list(itertools.accumulate(map(len, ACTIVE), initial=0))
ROWS = [s + row for s, rows in zip(SEQLENS, ACTIVE, strict=False) for row in rows]


def attention_args(
    heads: int, groups: int, width: int, bias: bool, dtype: torch.dtype = torch.float64
) -> tuple[Any, ...]:
    total = SEQLENS[-1]
    q = leaf(total, heads, width, dtype=dtype)
    k, v = leaf(total, groups, width, dtype=dtype), leaf(total, groups, width, dtype=dtype)
    added = torch.randn(total, max(LENGTHS) + 1, dtype=dtype) if bias else None
    return q, k, v, torch.tensor(ROWS), CU_ACTIVE, SEQLENS, width**-0.5, added


def plain_attention(*args: Any) -> torch.Tensor:
    """The definition: outputs of inactive queries detached, and their rows' keys and values."""
    q, k, v, rows, _, cu, scale, bias = args
    keep = torch.zeros(len(q), 1, dtype=torch.bool)
    keep[rows] = True
    k, v = (torch.where(keep[..., None], t, t.detach()) for t in (k, v))
    repeat = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeat, 1) for t in (k, v))
    parts = []
    for a, b in itertools.pairwise(cu):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * scale
        if bias is not None:
            scores = scores + bias[a:b, : b - a]
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[a:b]).flatten(1))
    out = torch.cat(parts)
    return torch.where(keep, out, out.detach())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_active_query_attention_is_its_definition(width: int, groups: int, bias: bool) -> None:
    torch.manual_seed(width + groups)
    args = attention_args(4, groups, width, bias)
    out, wanted = ops.active_query_attention(*args), plain_attention(*args)
    torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-12)
    down = torch.randn_like(out)
    got = torch.autograd.grad(out, args[:3], down)
    for g, w in zip(got, torch.autograd.grad(wanted, args[:3], down), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-11)
    assert got[0].abs().sum(dim=(1, 2)).nonzero()[:, 0].tolist() == ROWS


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("width", [32, 64, 80, 96, 128, 256])
def test_active_query_attention_rounds_little(width: int, dtype: torch.dtype, limit: float) -> None:
    """Value and adjoint against the definition in float64, of the same rounded numbers."""
    torch.manual_seed(width)
    args = attention_args(4, 2, width, True, dtype)
    exact = [
        a.detach().double().requires_grad_(a.requires_grad)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    out, wanted = ops.active_query_attention(*args), plain_attention(*exact)
    down = torch.randn_like(out)
    got = (out, *torch.autograd.grad(out, args[:3], down))
    true = (wanted, *torch.autograd.grad(wanted, exact[:3], down.double()))
    for name, g, w in zip(("value", "dq", "dk", "dv"), got, true, strict=True):
        assert g.dtype == dtype
        assert ((g.double() - w).norm() / w.norm()).item() <= limit, name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_active_query_attention_gradcheck(width: int, bias: bool) -> None:
    """With all rows active the operator is attention, and its adjoint the derivative."""
    torch.manual_seed(width)
    lengths = [3, 1, 2]
    cu = list(itertools.accumulate(lengths, initial=0))
    q, k, v = leaf(6, 2, width), leaf(6, 1, width), leaf(6, 1, width)
    added = torch.randn(6, 3, dtype=torch.float64) if bias else None

    def all_active(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.active_query_attention(q, k, v, torch.arange(6), cu, cu, width**-0.5, added)

    assert torch.autograd.gradcheck(all_active, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_active_query_attention_gradcheck_at_active_rows(width: int, bias: bool) -> None:
    """Of the active rows' outputs the ragged adjoint is the derivative by queries, keys, values.

    The numerical derivative also sees what inactive rows would add, so only theirs are summed."""
    torch.manual_seed(width)
    args = attention_args(4, 2, width, bias)

    def active_outputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.active_query_attention(q, k, v, *args[3:])[ROWS]

    # Gradients by keys and values at inactive rows are left out by definition, so they are fixed.
    k, v = (t.detach() for t in args[1:3])
    at = torch.tensor(ROWS)

    def of_active(q: torch.Tensor, k_active: torch.Tensor, v_active: torch.Tensor) -> torch.Tensor:
        return active_outputs(q, k.index_copy(0, at, k_active), v.index_copy(0, at, v_active))

    inputs = (args[0], k[at].requires_grad_(), v[at].requires_grad_())
    assert torch.autograd.gradcheck(of_active, inputs, fast_mode=True)


def test_fake_active_query_attention() -> None:
    with FakeTensorMode():
        q = torch.empty(12, 4, 32)
        out = ops.active_query_attention(
            q, torch.empty(12, 2, 32), torch.empty(12, 2, 32), torch.empty(5, dtype=torch.int64),
            CU_ACTIVE, SEQLENS, 0.1,
        )  # fmt: skip
        assert out.shape == (12, 128)
        assert out.dtype == q.dtype
        dq, dk, dv = ops.active_query_attention_backward(
            torch.empty(5, 128), torch.empty(5, 4, 32), torch.empty(12, 2, 32),
            torch.empty(12, 2, 32), torch.empty(7, dtype=torch.int64),
            [0, 3, 5, 7], CU_ACTIVE, SEQLENS, 0.1,
        )  # fmt: skip
        assert (dq.shape, dk.shape, dv.shape) == ((5, 4, 32), (7, 2, 32), (7, 2, 32))


def test_a_second_derivative_is_refused() -> None:
    args = attention_args(2, 2, 32, bias=False)
    out = ops.active_query_attention(*args)
    (first,) = torch.autograd.grad(out.square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="active_query_attention_backward is not implemented"):
        first.square().sum().backward()


def offsets(*values: int) -> list[int]:
    return list(values)


def real(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def cases(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator that is not differentiable."""
    total = torch.float64 if dtype == torch.float64 else torch.float32
    logits = real(5, 30, dtype=dtype)
    logits[2, 4:9] = -torch.inf
    _, entropy, max_prob, _, argmax = ops.row_statistics(logits)
    q, k, v, rows, cu_active, cu, scale, bias = attention_args(4, 2, 32, True, dtype)
    q, k, v = (t.detach() for t in (q, k, v))
    wide = real(5, 100, dtype=dtype)
    return {
        "rms_norm": (real(5, 32, dtype=dtype), real(32, dtype=total), 1e-5),
        "rms_norm_backward": (
            real(5, 32, dtype=dtype), real(5, 32, dtype=dtype), real(32, dtype=total), 1e-5,
        ),
        "gated": (real(5, 32, dtype=dtype), "silu"),
        "gated_backward": (real(5, 16, dtype=dtype), real(5, 32, dtype=dtype), "gelu"),
        "rope_": (
            wide, 3, real(9, 16, dtype=total), real(9, 16, dtype=total),
            torch.tensor([3, 0, 8, 1, 1]), True,
        ),
        "row_statistics": (logits,),
        "sample_rows": (logits, torch.rand(5, dtype=torch.float64), 0.7, 4, 0.9),
        "counter_uniforms": (*(torch.randint(0, 99, (5,)) for _ in range(3)), 7, 1),
        "entropy_adjoint_": (logits, argmax, max_prob, entropy, real(5, dtype=total)),
        "active_query_attention": (q, k, v, rows, cu_active, cu, scale, bias),
        "active_query_attention_backward": (
            real(5, 128, dtype=dtype), q[rows], k, v, rows, cu_active, cu_active, cu, scale,
            bias[rows], torch.tensor([1, 2, 4]), offsets(0, 2, 2, 3),
        ),
    }  # fmt: skip


NAMES = list(cases(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    torch.library.opcheck(getattr(ops, name).default, cases(dtype)[name])


@pytest.mark.parametrize("bias", [False, True])
def test_opcheck_differentiable(bias: bool) -> None:
    torch.manual_seed(1)
    torch.library.opcheck(ops.active_query_attention.default, attention_args(4, 2, 32, bias))


def test_every_operator_is_checked() -> None:
    registered = {
        schema.name.removeprefix("tabes::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("tabes::")
    }
    assert registered == set(NAMES)


DIFFERENTIABLE = "active_query_attention"
NOT_OF_REALS = ("counter_uniforms", "sample_rows")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (DIFFERENTIABLE, *NOT_OF_REALS)])
def test_what_is_not_differentiable_says_so(name: str) -> None:
    """No operator may hand back a result that autograd would silently take for a constant."""
    torch.manual_seed(1)
    first, *others = cases(torch.float64)[name]
    given = first.clone().requires_grad_() * 1

    def differentiate() -> None:
        out = getattr(ops, name)(given, *others)
        (out[0] if isinstance(out, tuple) else out).sum().backward()

    with pytest.raises(RuntimeError, match=f"derivative for tabes::{name} is not implemented"):
        differentiate()
