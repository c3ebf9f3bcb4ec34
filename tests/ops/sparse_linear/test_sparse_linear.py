"""Sparse counts times a dense weight: the reference, the CPU kernel, and their gradient."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor, nan

from budget import Budget
from vivace.errors import OptionError, ShapeError
from vivace.ops import sparse_linear
from vivace.ops.csr import SparseCounts
from vivace.ops.sparse_linear import cpu, reference

each_transform = pytest.mark.parametrize("transform", ["none", "log1p"])


def random_problem(seed, n=40, g=130, h=24, share=0.15, largest=1e3):
    """Counts with a heavy tail, a weight and an upstream gradient."""
    gen = torch.Generator().manual_seed(seed)
    nonzero = torch.rand(n, g, generator=gen) < share
    x = (largest ** torch.rand(n, g, generator=gen)).floor() * nonzero
    weight = torch.randn(g, h, generator=gen) / g**0.5
    return SparseCounts.from_dense(x), weight, torch.randn(n, h, generator=gen)


def results(problem, dtype, backend, transform="none") -> dict[str, Tensor]:
    counts, weight, upstream = problem
    leaf = weight.to(dtype, copy=True).requires_grad_()
    counts = replace(counts, values=counts.values.to(dtype))
    out = sparse_linear(counts, leaf, transform=transform, backend=backend)
    out.backward(upstream.to(dtype))
    return {"out": out.detach(), "weight": leaf.grad}


def check_budget(problems, transform="none"):
    budget = Budget()
    for problem in problems:
        kernel = results(problem, torch.float32, "cpu", transform)
        single = results(problem, torch.float32, "reference", transform)
        exact = results(problem, torch.float64, "reference", transform)
        for name in exact:
            budget.add(name, kernel[name], single[name], exact[name])
    budget.check()


def assert_same_bits(result, expected):
    for name, array in expected.items():
        assert torch.equal(result[name], array), name


# ---- the reference ----------------------------------------------------------


@each_transform
def test_reference_against_scipy(transform, device, exact_dtype):
    counts, weight, upstream = random_problem(0)
    matrix = sp.csr_matrix(
        (counts.values.double().numpy(), counts.genes.numpy(), counts.indptr.numpy()),
        shape=(counts.n_cells, counts.n_genes),
    )
    matrix = matrix.log1p() if transform == "log1p" else matrix
    expected = {
        "out": matrix @ weight.double().numpy(),
        "weight": matrix.T @ upstream.double().numpy(),
    }
    moved = counts.to(device), weight.to(device), upstream.to(device)
    result = results(moved, exact_dtype, "reference", transform)
    for name, array in expected.items():
        size = 130 * np.abs(array).max() * torch.finfo(exact_dtype).eps
        assert np.abs(result[name].cpu().double().numpy() - array).max() <= size


@each_transform
def test_gradcheck(transform, device_with_float64):
    counts, weight, upstream = random_problem(1, n=4, g=6, h=3, share=0.5)
    counts = replace(counts, values=counts.values.double()).to(device_with_float64)
    weight = weight.double().to(device_with_float64).requires_grad_()
    upstream = upstream.double().to(device_with_float64)

    def loss(weight):
        out = sparse_linear(counts, weight, transform=transform, backend="reference")
        return (out * upstream).sum()

    assert torch.autograd.gradcheck(loss, [weight])


def test_logarithm_is_taken_in_the_wider_type():
    """Float32 counts and a float64 weight give a float64 result."""
    counts = SparseCounts.from_dense(torch.tensor([[3.0]]))
    one = torch.ones(1, 1, dtype=torch.float64)
    assert sparse_linear(counts, one, transform="log1p").item() == pytest.approx(
        np.log(4.0), rel=1e-15
    )


# ---- the kernel -------------------------------------------------------------


@pytest.mark.parametrize("largest", [30.0, 1e6])
@each_transform
def test_random_cells_keep_the_error_budget(transform, largest):
    check_budget((random_problem(seed, largest=largest) for seed in range(12)), transform)


@pytest.mark.parametrize("n", [1, 17])
@pytest.mark.parametrize("g", [1, 63, 1271])
@pytest.mark.parametrize("h", [1, 20, 255])  # 255 columns: each of the tiles, and 15 left over
@each_transform
def test_every_size_keeps_the_error_budget(transform, n, g, h):
    check_budget((random_problem(seed, n, g, h) for seed in range(8)), transform)


@pytest.mark.parametrize("empty", [[0, 7, 39], range(40)], ids=["some", "all"])
def test_empty_cells_give_zeros(empty):
    counts, weight, upstream = random_problem(2)
    x = counts.dense()
    x[list(empty)] = 0
    problem = SparseCounts.from_dense(x), weight, upstream
    assert not results(problem, torch.float32, "cpu")["out"][list(empty)].any()
    check_budget([problem])


def test_gene_without_counts_has_no_gradient():
    counts, weight, upstream = random_problem(3)
    x = counts.dense()
    x[:, [0, 50, 129]] = 0
    problem = SparseCounts.from_dense(x), weight, upstream
    weight_gradient = results(problem, torch.float32, "cpu")["weight"]
    assert not weight_gradient[[0, 50, 129]].any()
    assert weight_gradient.abs().sum(1).gt(0).sum() == 127
    check_budget([problem])


def test_arrays_need_not_be_contiguous():
    def strided(tensor):
        wide = torch.full((*tensor.T.shape[:-1], 2 * tensor.T.shape[-1]), nan)
        wide[..., ::2] = tensor.T
        assert not wide[..., ::2].T.is_contiguous()
        return wide[..., ::2].T

    problems = []
    for seed in range(8):
        counts, weight, upstream = random_problem(seed)
        counts = replace(
            counts,
            indptr=torch.stack([counts.indptr, counts.indptr], 1)[:, 0],
            genes=torch.stack([counts.genes, counts.genes], 1)[:, 0],
            values=torch.stack([counts.values, counts.values], 1)[:, 0],
        )
        assert not counts.values.is_contiguous()
        problems.append((counts, strided(weight), strided(upstream)))
    check_budget(problems)


def test_gradient_of_a_sum_has_no_memory_of_its_own():
    """``out.sum()`` sends back one number, expanded: all its strides are zero."""
    counts, weight, _ = random_problem(4)
    weight.requires_grad_()
    sparse_linear(counts, weight, backend="cpu").sum().backward()
    expected = counts.dense().sum(0)[:, None].expand_as(weight)
    assert torch.equal(weight.grad, expected)  # sums of integers are exact


def test_cells_from_the_middle_of_a_matrix():
    """Row pointers that do not start at zero."""
    counts, weight, upstream = random_problem(5)
    middle = replace(counts, indptr=counts.indptr[7:20]), weight, upstream[7:19]
    packed = SparseCounts.from_dense(counts.dense()[7:19]), weight, upstream[7:19]
    assert_same_bits(results(middle, torch.float32, "cpu"), results(packed, torch.float32, "cpu"))


@each_transform
def test_stored_zeros_are_zeros(transform):
    counts, weight, upstream = random_problem(6)
    stored = SparseCounts(
        torch.arange(41) * 130,
        torch.arange(130, dtype=torch.int32).repeat(40),
        counts.dense().flatten(),
        130,
    )
    problems = [(c, weight, upstream) for c in (stored, counts)]
    assert_same_bits(*(results(p, torch.float32, "cpu", transform) for p in problems))


@each_transform
def test_reads_no_memory_that_it_did_not_write(transform, request):
    problem = random_problem(7, n=17, g=63)
    expected = results(problem, torch.float32, "cpu", transform)
    request.getfixturevalue("fresh_memory_is_nan")
    assert_same_bits(results(problem, torch.float32, "cpu", transform), expected)


def test_nan_and_infinity_show_where_they_belong():
    counts, weight, _ = random_problem(8)
    x = counts.dense()
    x[:, 3], x[5, 3] = 0, 2.0
    weight[3, 1] = nan
    out = sparse_linear(SparseCounts.from_dense(x), weight, backend="cpu")
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[5, 1] = True
    assert torch.equal(out.isnan(), expected)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")
def test_bits_do_not_depend_on_threads():
    problem = random_problem(9, n=200, g=300)
    before = numba.get_num_threads()
    result = []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            result.append(results(problem, torch.float32, "cpu", "log1p"))
    finally:
        numba.set_num_threads(before)
    assert_same_bits(*result)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_both_backends_match_dense_matrices(backend):
    counts, weight, upstream = random_problem(10)
    x = counts.dense()
    torch.testing.assert_close(backend.product(counts, weight), x @ weight)
    torch.testing.assert_close(backend.weight_gradient(counts, upstream), x.T @ upstream)
    torch.testing.assert_close(backend.log1p(counts.values), counts.values.log1p())


def test_logarithm_of_any_number_is_that_of_numpy():
    values = np.concatenate(
        [np.geomspace(1e-30, 3e38, 9_000), -np.geomspace(1e-30, 0.999, 900), [0, 1, 2, 1e6]]
    ).astype(np.float32)
    exact = np.log1p(values.astype(np.float64))
    result = cpu.log1p(torch.from_numpy(values)).numpy()
    assert np.all(np.abs(result - exact) <= 2 * np.spacing(np.abs(exact).astype(np.float32)))
    special = torch.tensor([-1.0, -1.5, -torch.inf, torch.inf, nan, 0.0, -0.0])
    torch.testing.assert_close(cpu.log1p(special), special.log1p(), rtol=0, atol=0, equal_nan=True)


# ---- what it refuses --------------------------------------------------------


@pytest.mark.parametrize("shape", [(129, 24), (130,), (24, 130)])
def test_shapes_that_disagree_are_named(shape, refused):
    counts, _, _ = random_problem(11)
    with refused(ShapeError, "weight_gh", str(shape), "130 genes"):
        sparse_linear(counts, torch.zeros(shape))


def test_kernel_is_refused_where_it_does_not_apply(refused):
    counts, weight, _ = random_problem(12)
    with refused(OptionError, "backend='cpu'", "float32"):
        sparse_linear(counts, weight.double(), backend="cpu")


# ---- entries in any order -----------------------------------------------------


@each_transform
@pytest.mark.parametrize("g", [130, 700])  # 700 genes are three stretches
def test_the_genes_of_a_cell_may_come_in_any_order(transform, g):
    problems = []
    for seed in range(8):
        counts, weight, upstream = random_problem(seed, g=g)
        gen = torch.Generator().manual_seed(seed)
        order = torch.cat(
            [
                start + torch.randperm(int(stop - start), generator=gen)
                for start, stop in zip(counts.indptr[:-1], counts.indptr[1:], strict=True)
            ]
        )
        mixed = replace(counts, genes=counts.genes[order], values=counts.values[order])
        assert not mixed.scipy().has_sorted_indices
        assert torch.equal(mixed.dense(), counts.dense())
        problems.append((mixed, weight, upstream))
    check_budget(problems, transform)


@pytest.mark.parametrize("entries", range(10))
def test_any_number_of_entries_a_cell_and_a_gene(entries):
    gen = torch.Generator().manual_seed(entries)
    x = torch.zeros(11, 300)
    for row in x:
        row[torch.randperm(300, generator=gen)[:entries]] = 2.0
    for counts in (x, x[:, :11].T.contiguous()):
        weight = torch.randn(counts.shape[1], 24, generator=gen)
        upstream = torch.randn(len(counts), 24, generator=gen)
        check_budget([(SparseCounts.from_dense(counts), weight, upstream)])


@pytest.mark.parametrize("n", [1, 16, 17, 40])
def test_dense_counts_are_those_of_scipy(n):
    """Several entries of a gene add up; what was in the array before is gone."""
    rng = np.random.default_rng(n)
    cells, genes = rng.integers(0, n, 300), rng.integers(0, 25, 300)
    indptr = np.append(0, np.bincount(cells, minlength=n).cumsum())
    genes, values = genes.astype(np.int32), rng.integers(1, 9, 300).astype(np.float32)
    result = np.full((n, 25), np.nan, np.float32)
    cpu.fill_dense(result, indptr, genes, values)
    np.testing.assert_array_equal(result, sp.csr_matrix((values, genes, indptr), (n, 25)).toarray())
