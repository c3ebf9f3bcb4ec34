"""Products of matrices.

The float32 reference here adds the terms one after the other, as the definition
does; libraries differ in the order they choose.
"""

from __future__ import annotations

import pytest
import torch

from budget import Budget
from vivace.ops.runtime import products as matmul

PATHS = {"onednn": (True, 0), "small": (True, 2**62), "fallback": (False, 0)}


@pytest.fixture
def path(request, monkeypatch):
    """Sets whether torch has oneDNN, and up to which size products are small."""
    onednn, small = request.param
    monkeypatch.setattr(matmul, "_SMALL", small)
    monkeypatch.setattr(matmul, "_ONEDNN", matmul._onednn_linear() if onednn else None)


@pytest.fixture
def threads():
    """Restores the number of torch's threads afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS, indirect=True)


def sum_in_order(a, b, bias):
    """The sum over the inner axis, term by term, in float32."""
    out = torch.zeros(len(a), b.shape[1])
    for i in range(a.shape[1]):
        out.addr_(a[:, i], b[i])
    return out if bias is None else out + bias


def plain(tensor):
    return tensor.clone()


def transposed(tensor):
    return tensor.T.contiguous().T


def strided(tensor):
    wide = torch.full((2 * tensor.shape[0], 3 * tensor.shape[1]), torch.nan)
    wide[::2, ::3] = tensor
    return wide[::2, ::3]


@each_path
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("layout_b", [plain, transposed, strided])
@pytest.mark.parametrize("layout_a", [plain, transposed, strided])
@pytest.mark.parametrize(
    ("n", "k", "m"), [(1, 1, 1), (1, 128, 63), (17, 5, 1271), (17, 1271, 5), (128, 16, 1)]
)
def test_products_keep_the_error_budget(n, k, m, layout_a, layout_b, biased, path):
    budget = Budget()
    for seed in range(8):
        gen = torch.Generator().manual_seed(seed)
        a, b = torch.randn(n, k, generator=gen), torch.randn(k, m, generator=gen)
        bias = torch.randn(m, generator=gen) if biased else None
        result = matmul.product(layout_a(a), layout_b(b), bias)
        exact = a.double() @ b.double() + (0 if bias is None else bias.double())
        budget.add("product", result, sum_in_order(a, b, bias), exact)
    budget.check()


@each_path
def test_a_bias_may_have_any_stride(path):
    a, b = torch.ones(3, 5), torch.ones(5, 40)
    for bias in (torch.arange(80.0)[::2], torch.ones(1).expand(40), torch.arange(41.0)[1:]):
        assert torch.equal(matmul.product(a, b, bias), 5.0 + bias.expand(3, 40))


@each_path
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("n", "k", "m"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_products_of_empty_matrices_are_zeros_or_the_bias(n, k, m, biased, path):
    bias = torch.arange(float(m)) if biased else None
    result = matmul.product(torch.ones(n, k), torch.ones(k, m), bias)
    expected = torch.zeros(n, m) if k == 0 else torch.full((n, m), float(k))
    assert torch.equal(result, expected if bias is None else expected + bias)


@each_path
def test_nan_shows_in_its_row_and_column_alone(path):
    a, b = torch.ones(5, 7), torch.ones(7, 33)
    a[2, 3], b[4, 20] = torch.nan, torch.nan
    result = matmul.product(a, b).isnan()
    assert torch.equal(result, a.isnan().any(1)[:, None] | b.isnan().any(0))


@pytest.mark.parametrize(("small", "calls_expected"), [(23, 1), (24, 0)])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_small_products_are_not_onednn_s(small, calls_expected, biased, monkeypatch):
    calls = []
    onednn = matmul._onednn_linear()
    if onednn is None:
        assert matmul._ONEDNN is None
        return
    monkeypatch.setattr(matmul, "_ONEDNN", lambda *a: calls.append(a) or onednn(*a))
    monkeypatch.setattr(matmul, "_SMALL", small)
    bias = torch.ones(4) if biased else None
    result = matmul.product(torch.ones(2, 3), torch.ones(3, 4), bias)
    assert torch.equal(result, torch.full((2, 4), 3.0 + biased))
    assert len(calls) == calls_expected


def test_no_onednn_is_found_where_torch_has_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert matmul._onednn_linear() is None


SHAPES = [  # cells, inner axis, columns: heads, their gradients, latent space, few cells
    (128, 128, 2000), (128, 2000, 128), (127, 1838, 20), (128, 128, 20), (9, 128, 128), (9, 128, 20),
    (10, 10, 2000), (2000, 10, 128), (1024, 128, 20), (64, 20_000, 64), (17, 17_001, 128),
]  # fmt: skip


@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
@pytest.mark.parametrize("layout_b", [plain, transposed])
@pytest.mark.parametrize("layout_a", [plain, transposed])
def test_results_do_not_depend_on_the_number_of_threads(n, k, m, layout_a, layout_b, threads):
    """The number of threads changes with the load during training."""
    gen = torch.Generator().manual_seed(0)
    a, b = layout_a(torch.randn(n, k, generator=gen)), layout_b(torch.randn(k, m, generator=gen))
    bias = torch.randn(m, generator=gen)
    for bias_or_none in (None, bias):
        result = []
        for number in (1, 2, 3, 4, 7, 16):
            torch.set_num_threads(number)
            result.append(matmul.product(a, b, bias_or_none).clone())
            assert torch.get_num_threads() == number
        assert all(torch.equal(result[0], other) for other in result[1:])


@pytest.mark.parametrize("layout_b", [plain, transposed])
def test_a_long_inner_axis_is_cut_into_pieces(layout_b, monkeypatch):
    """In whole numbers, so that every order of the sum is exact."""
    monkeypatch.setattr(matmul, "_SMALL", 0)
    gen = torch.Generator().manual_seed(0)
    for k in (2**14, 2**14 + 1, 2**15 + 1, 50_000):
        a = torch.randint(-3, 4, (5, k), generator=gen).float()
        b = torch.randint(-3, 4, (k, 33), generator=gen).float()
        bias = torch.arange(33.0)
        exact = a.double() @ b.double()
        assert torch.equal(matmul.product(a, layout_b(b)).double(), exact)
        assert torch.equal(matmul.product(a, layout_b(b), bias).double(), exact + bias.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_linear_has_the_gradients_of_its_definition(biased, dtype):
    gen = torch.Generator().manual_seed(0)
    shapes = [(17, 5), (5, 9)] + [(9,)] * biased
    given = [torch.randint(-4, 5, s, generator=gen).to(dtype).requires_grad_() for s in shapes]
    upstream = torch.randint(-4, 5, (17, 9), generator=gen).to(dtype)
    result = torch.autograd.grad(matmul.linear(*given), given, upstream)
    x, weight = given[:2]
    expected = [upstream @ weight.T, x.T @ upstream] + [upstream.sum(0)] * biased
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("moved", [(0,), (1,), (2,), (0, 1, 2)])
def test_linear_has_the_derivative_of_its_definition(moved):
    gen = torch.Generator().manual_seed(0)
    given = [torch.randint(-4, 5, s, generator=gen).float() for s in ((17, 5), (5, 9), (9,))]
    tangents = [torch.randint(-4, 5, t.shape, generator=gen).float() for t in given]

    def moving(*some):
        arguments = list(given)
        for i, value in zip(moved, some, strict=True):
            arguments[i] = value
        return matmul.linear(*arguments)

    primals, along = tuple(given[i] for i in moved), tuple(tangents[i] for i in moved)
    _, result = torch.func.jvp(moving, primals, along)
    (x, w, _), (dx, dw, db) = given, tangents
    parts = [dx @ w, x @ dw, db.expand(17, 9)]
    assert torch.equal(result, sum(parts[i] for i in moved))


def test_linear_has_no_second_derivative():
    """Its gradients are computed outside autograd."""
    x = torch.ones(2, 3, requires_grad=True)
    weight = torch.ones(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(matmul.linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
