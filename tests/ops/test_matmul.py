"""Products of matrices.

The float32 reference here adds the terms one after the other, as the definition
does; libraries differ in the order they choose.
"""

from __future__ import annotations

import pytest
import torch

from budget import Budget
from vivace.ops import matmul

PATHS = {  # whether there is oneDNN, and whether MKL is preferred without and with a bias
    "onednn": (True, (False, False)),
    "mkl": (True, (True, False)),
    "mkl with bias": (True, (True, True)),
    "fallback": (False, (False, False)),
}


@pytest.fixture
def path(request, monkeypatch):
    """Sets what torch is said to have: oneDNN, and an MKL made for the processor."""
    onednn, mkl = request.param
    monkeypatch.setattr(matmul, "_SMALL", 0)
    monkeypatch.setattr(matmul, "_ONEDNN", matmul._onednn_linear() if onednn else None)
    for name, value in zip(("_MKL", "_MKL_WITH_BIAS"), mkl, strict=True):
        monkeypatch.setattr(matmul, name, value)


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS, indirect=True)


def in_order(a, b, bias):
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
@pytest.mark.parametrize("of_b", [plain, transposed, strided])
@pytest.mark.parametrize("of_a", [plain, transposed, strided])
@pytest.mark.parametrize(
    ("n", "k", "m"), [(1, 1, 1), (1, 128, 63), (17, 5, 1271), (17, 1271, 5), (128, 16, 1)]
)
def test_budget(n, k, m, of_a, of_b, biased, path):
    budget = Budget()
    for seed in range(8):
        gen = torch.Generator().manual_seed(seed)
        a, b = torch.randn(n, k, generator=gen), torch.randn(k, m, generator=gen)
        bias = torch.randn(m, generator=gen) if biased else None
        found = matmul.product(of_a(a), of_b(b), bias)
        exact = a.double() @ b.double() + (0 if bias is None else bias.double())
        budget.add("product", found, in_order(a, b, bias), exact)
    budget.check()


@each_path
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("n", "k", "m"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_nothing_in_it(n, k, m, biased, path):
    bias = torch.arange(float(m)) if biased else None
    found = matmul.product(torch.ones(n, k), torch.ones(k, m), bias)
    expected = torch.zeros(n, m) if k == 0 else torch.full((n, m), float(k))
    assert torch.equal(found, expected if bias is None else expected + bias)


@each_path
def test_nan_shows_in_its_row_and_column_alone(path):
    a, b = torch.ones(5, 7), torch.ones(7, 33)
    a[2, 3], b[4, 20] = torch.nan, torch.nan
    found = matmul.product(a, b).isnan()
    assert torch.equal(found, a.isnan().any(1)[:, None] | b.isnan().any(0))


@pytest.mark.parametrize(
    ("mkl", "biased", "small", "expected"),
    [
        ((False, False), False, False, 1),
        ((False, False), False, True, 0),
        ((False, False), True, False, 1),
        ((False, False), True, True, 1),
        ((True, False), False, False, 0),
        ((True, False), True, False, 1),
        ((True, True), False, False, 0),
        ((True, True), True, False, 0),
    ],
)
def test_which_path_is_taken(mkl, biased, small, expected, monkeypatch):
    """oneDNN where torch has it, but for the products that MKL is faster at."""
    calls = []
    onednn = matmul._onednn_linear()
    if onednn is None:
        assert matmul._ONEDNN is None
        return
    monkeypatch.setattr(matmul, "_ONEDNN", lambda *a: calls.append(a) or onednn(*a))
    for name, value in zip(("_MKL", "_MKL_WITH_BIAS"), mkl, strict=True):
        monkeypatch.setattr(matmul, name, value)
    monkeypatch.setattr(matmul, "_SMALL", 25 if small else 24)
    bias = torch.ones(4) if biased else None
    found = matmul.product(torch.ones(2, 3), torch.ones(3, 4), bias)
    assert torch.equal(found, torch.full((2, 4), 3.0 + biased))
    assert len(calls) == expected


def test_no_onednn_is_found_where_torch_has_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert matmul._onednn_linear() is None


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [
        ("GenuineIntel", "AVX512", (True, False)),
        ("AuthenticAMD", "AVX512", (False, False)),
        ("GenuineIntel", "AVX2", (True, True)),
        ("AuthenticAMD", "AVX2", (True, True)),
        ("ARM", "DEFAULT", (False, False)),
    ],
)
@pytest.mark.parametrize("available", [True, False])
def test_mkl_is_taken_where_it_is_fast(
    vendor, capability, expected, available, monkeypatch, tmp_path
):
    listed = tmp_path / "cpuinfo"
    listed.write_text(f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr(matmul, "_LISTED", listed)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: available)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert matmul._mkl_is_fast() == (expected if available else (False, False))
