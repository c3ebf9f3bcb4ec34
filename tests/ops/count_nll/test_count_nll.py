"""The CPU kernels compared with the float64 reference: error budget, memory, autograd."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numba
import pytest
import torch
from torch import nan

from problems import COUNTS, HEADS, check_count_budget, count_problem, count_results
from vivace.errors import VivaceError
from vivace.ops import count_nll
from vivace.ops.count_nll import CountHeads, CountNLLInputs, cpu, reference
from vivace.ops.csr import SparseCounts
from vivace.ops.runtime.workspace import Workspace, thread_workspace

REDUCTIONS = ("none", "sum", "mean")
each_likelihood = pytest.mark.parametrize("likelihood", COUNTS)
each_dispersed = pytest.mark.parametrize("likelihood", ["nb", "zinb"])
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def kernel(problem, reduction="none", **options):
    return count_results(problem, torch.float32, backend="cpu", reduction=reduction, **options)


def assert_same_bits(result, expected):
    assert result.keys() == expected.keys()
    for name, array in expected.items():
        assert torch.equal(result[name], array), name


# ---- the budget -------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 3.0], ids=["ordinary", "wide"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@each_reduction
@each_likelihood
def test_random_cells_keep_the_error_budget(likelihood, reduction, weighted, spread):
    problems = (count_problem(likelihood, seed, spread=spread) for seed in range(12))
    check_count_budget(problems, reduction, weighted=weighted)


@pytest.mark.parametrize("n", [1, 17])
@pytest.mark.parametrize("g", [1, 63, 1271])
@each_likelihood
def test_every_size_keeps_the_error_budget(likelihood, n, g):
    seeds = range(64 if n == 1 else 8)  # one cell has few numbers: more of them, or chance decides
    problems = [count_problem(likelihood, seed, n=n, g=g, h=5) for seed in seeds]
    check_count_budget(problems)
    check_count_budget(problems, "mean")


@each_reduction
@each_likelihood
def test_empty_cells_keep_the_error_budget(likelihood, reduction):
    problems = [count_problem(likelihood, seed) for seed in range(8)]
    some = torch.ones(16, 1)
    some[[0, 7, 15]] = 0
    problems = [
        p.with_counts(p.counts.dense() * keep) for p in problems for keep in (some, 0 * some)
    ]
    check_count_budget(problems, reduction)


SPECIAL_COUNTS = {
    "one million": [0.0, 1.0, 1e6],
    "edge of the table": [0.0, 31.0, 32.0, 33.0, 34.0],
    "not integers": [0.0, 0.25, 0.5, 31.5, 32.5, 33.75, 1e5 + 0.5],
    "edge of the factorials": [0.0, 254.0, 255.0, 256.0, 257.0],
}


@pytest.mark.parametrize("counts", SPECIAL_COUNTS.values(), ids=SPECIAL_COUNTS)
@each_reduction
@each_likelihood
def test_special_counts_keep_the_error_budget(likelihood, reduction, counts):
    values = torch.tensor(counts)
    problems = []
    for seed in range(8):
        gen = torch.Generator().manual_seed(seed)
        problem = count_problem(likelihood, seed)
        x = values[torch.randint(len(values), (16, 120), generator=gen)]
        library = x.sum(-1).clamp(min=1).log()
        problems.append(replace(problem.with_counts(x), log_library=library))
    check_count_budget(problems, reduction)


@pytest.mark.parametrize("log_theta", [-15.0, -9.0, 9.0, 15.0])
@each_reduction
@each_dispersed
def test_tiny_and_huge_theta_keep_the_error_budget(likelihood, reduction, log_theta):
    theta = torch.full((120,), log_theta)
    problems = [count_problem(likelihood, seed).with_heads(log_theta_g=theta) for seed in range(8)]
    check_count_budget(problems, reduction)


@pytest.mark.parametrize(("log_theta", "log_library"), [(-2.0, 8.0), (-4.0, 11.0), (-12.0, 12.0)])
def test_counts_far_above_theta_lose_no_digits(log_theta, log_library):
    """An absolute bound: here the float32 reference is wrong by 0.05, and so the budget is wide."""
    n, g, h = 16, 40, 8
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, h, generator=generator).relu()
    scale_hg = torch.randn(h, g, generator=generator) / h**0.5
    scale_g = torch.randn(g, generator=generator)
    log_theta_g = log_theta + 0.3 * torch.randn(g, generator=generator)
    mean = ((hidden @ scale_hg + scale_g).double().log_softmax(-1) + log_library).exp()
    counts = SparseCounts.from_dense(mean.round().clamp(min=1.0).float())

    def nll(dtype, backend):
        tensors = [t.to(dtype) for t in (hidden, scale_hg, scale_g, log_theta_g)]
        return count_nll(
            replace(counts, values=counts.values.to(dtype)),
            tensors[0],
            CountHeads(*tensors[1:], None, None),
            torch.full((n,), log_library, dtype=dtype),
            likelihood="nb",
            backend=backend,
        ).double()

    error = (nll(torch.float32, "cpu") - nll(torch.float64, "reference")).abs().max()
    assert error < 1e-4


@pytest.mark.parametrize("log_theta", [15.001, 16.0, 100.0, math.inf])
@pytest.mark.parametrize("sign", [-1, 1])
@each_dispersed
def test_theta_beyond_its_bounds_is_clamped(likelihood, sign, log_theta):
    """The value is that at the bound; the gradient is zero, in the reference as in the kernel."""
    some = torch.arange(120) % 3 == 0
    problem = count_problem(likelihood, seed=6)
    inside = problem.heads.log_theta_g
    outside = problem.with_heads(log_theta_g=inside.where(~some, torch.tensor(sign * log_theta)))
    bounded = problem.with_heads(log_theta_g=inside.where(~some, torch.tensor(sign * 15.0)))
    for reduction in REDUCTIONS:
        for backend in ("cpu", "reference"):
            options = {"backend": backend, "reduction": reduction}
            result = count_results(outside, torch.float32, **options)
            expected = count_results(bounded, torch.float32, **options)
            theta_gradient = result.pop("log_theta_g")
            assert not theta_gradient[some].any()
            assert torch.equal(theta_gradient[~some], expected.pop("log_theta_g")[~some])
            assert_same_bits(result, expected)


@pytest.mark.parametrize("zi_logit", [-60.0, -43.0, -20.0, 20.0, 43.0, 60.0, 100.0])
@each_reduction
def test_extreme_zero_inflation_keeps_the_error_budget(reduction, zi_logit):
    problems = [
        count_problem("zinb", seed).with_heads(
            dropout_hg=torch.zeros(8, 120), dropout_g=torch.full((120,), zi_logit)
        )
        for seed in range(8)
    ]
    mixed = torch.where(torch.arange(120) % 2 == 0, zi_logit, -zi_logit)
    problems += [p.with_heads(dropout_g=mixed) for p in problems]
    check_count_budget(problems, reduction)


@pytest.mark.parametrize("log_library", [8.0, 14.0])
@pytest.mark.parametrize("zi_logit", [-26.0, -28.0, -43.0, -45.0, -61.0, -86.0, -90.0, -120.0])
@each_reduction
def test_a_zero_that_neither_dropout_nor_nb_explains(reduction, zi_logit, log_library):
    """Means of 25 or 1e4 and theta of 10: log NB(0) is about -20 or -70, and later underflows."""
    problems = []
    for seed in range(32):
        gen = torch.Generator().manual_seed(seed)
        problem = count_problem("zinb", seed).with_heads(
            log_theta_g=torch.log(5 + 20 * torch.rand(120, generator=gen)),
            dropout_hg=torch.zeros(8, 120),
            dropout_g=zi_logit + torch.randn(120, generator=gen),
        )
        keep = torch.rand(16, 120, generator=gen) < 0.5
        problem = problem.with_counts(problem.counts.dense() * keep)
        problems.append(replace(problem, log_library=torch.full((16,), log_library)))
    check_count_budget(problems, reduction)


@pytest.mark.parametrize("zi_logit", [-43.0, -43.7, -60.0, -float("inf")])
def test_processors_that_flush_small_numbers_to_zero(zi_logit):
    """All intermediate values are normal float32 numbers. One thread: the setting is per thread."""
    problem = count_problem("zinb", seed=0, n=4, g=3000).with_heads(
        dropout_hg=torch.zeros(8, 3000), dropout_g=torch.full((3000,), zi_logit)
    )
    problem = replace(problem, log_library=torch.full((4,), 3.0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = kernel(problem)
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush small numbers to zero")
        result = kernel(problem)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert torch.equal(result["nll"], expected["nll"])
    for name, gradient in result.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-30), name


@pytest.mark.parametrize("certain", [80.0, 1e30, float("inf")])
def test_a_gene_that_is_surely_dropped_beside_one_that_vanishes(certain):
    """A row computed with logarithms because of one gene also contains ordinary genes."""
    logits = torch.full((120,), -2.0)
    logits[3], logits[50] = -70.0, certain
    problem = count_problem("zinb", seed=0).with_heads(
        log_theta_g=torch.full((120,), 3.0), dropout_hg=torch.zeros(8, 120), dropout_g=logits
    )
    counts = problem.counts.dense()
    counts[:, [3, 50]] = 0.0
    problem = replace(problem.with_counts(counts), log_library=torch.full((16,), 14.0))
    result = kernel(problem)
    finite = replace(problem, heads=replace(problem.heads, dropout_g=logits.clamp(max=1e4)))
    expected = count_results(finite, torch.float64, backend="reference", reduction="none")
    assert torch.allclose(result["nll"].double(), expected["nll"], rtol=1e-6)
    assert all(gradient.isfinite().all() for gradient in result.values())


@pytest.mark.parametrize("largest", [-300.0, 0.0, 300.0])
@each_likelihood
def test_each_gene_in_the_softmax_may_lie_far_below_the_largest(likelihood, largest):
    """The loss still depends on a logit whose exp(logit - max) underflows in float32."""
    problem = count_problem(likelihood, seed=3)
    logits = torch.linspace(largest - 200, largest, 120)
    problems = [problem.with_heads(scale_hg=torch.zeros(8, 120), scale_g=logits)]
    check_count_budget(problems)
    check_count_budget(problems, "mean")


# ---- dispersion and softplus ------------------------------------------------

KINDS = {
    "softplus": {"activation": "softplus"},
    "table": {"dispersion": "table"},
    "head": {"dispersion": "head"},
    "table, softplus": {"dispersion": "table", "activation": "softplus"},
    "head, softplus": {"dispersion": "head", "activation": "softplus"},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def get_kinds(likelihood, kind):
    """Poisson has no dispersion."""
    return {k: v for k, v in kind.items() if likelihood != "poisson" or k != "dispersion"}


@pytest.mark.parametrize("spread", [1.0, 3.0], ids=["ordinary", "wide"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@each_kind
@each_reduction
@each_likelihood
def test_each_dispersion_and_activation_keeps_the_error_budget(
    likelihood, reduction, kind, weighted, spread
):
    options = get_kinds(likelihood, kind) | {"spread": spread}
    problems = (count_problem(likelihood, seed, **options) for seed in range(12))
    check_count_budget(problems, reduction, weighted=weighted)


@pytest.mark.parametrize("n", [1, 17])
@pytest.mark.parametrize("g", [1, 63, 1271])
@each_kind
@each_likelihood
def test_sizes_of_each_dispersion_and_activation(likelihood, kind, n, g):
    options = get_kinds(likelihood, kind) | {"n": n, "g": g, "h": 5}
    seeds = range(64 if n == 1 else 16)
    problems = [count_problem(likelihood, seed, **options) for seed in seeds]
    check_count_budget(problems)
    check_count_budget(problems, "mean")


@each_kind
@each_reduction
@each_likelihood
def test_blocks_of_each_dispersion_and_activation(likelihood, reduction, kind, monkeypatch):
    monkeypatch.setattr(cpu, "_BLOCK_CELLS", 1)
    monkeypatch.setattr(cpu, "_BLOCK_BYTES", 5 * 4 * 120)
    options = get_kinds(likelihood, kind)
    check_count_budget((count_problem(likelihood, s, **options) for s in range(8)), reduction)


@pytest.mark.parametrize("dispersion", ["table", "head"])
@each_dispersed
def test_theta_of_a_cell_beyond_its_bounds_is_clamped(likelihood, dispersion):
    """As with one theta per gene: the value at the bound, no gradient."""
    field = "log_theta_g" if dispersion == "table" else "theta_bias_g"
    problem = count_problem(likelihood, seed=6, dispersion=dispersion)
    some = torch.arange(120) % 3 == 0
    inside = getattr(problem.heads, field)
    for sign in (-1, 1):
        outside = problem.with_heads(**{field: torch.where(some, sign * 100.0, inside)})
        for reduction in REDUCTIONS:
            result = kernel(outside, reduction)
            expected = count_results(outside, torch.float64, reduction=reduction)
            assert not result[field][..., some].any()
            torch.testing.assert_close(
                result["nll"].double(), expected["nll"], rtol=1e-5, atol=1e-4
            )


@pytest.mark.parametrize("logit", [-300.0, -88.0, -25.0, -20.0, -19.9, 0.0, 25.0, 90.0])
@each_likelihood
def test_softplus_far_from_zero_keeps_the_error_budget(likelihood, logit):
    """Its log is the logit itself where softplus leaves float32."""
    problems = []
    for seed in range(8):
        problem = count_problem(likelihood, seed, activation="softplus")
        logits = logit + torch.randn(120, generator=torch.Generator().manual_seed(seed))
        library = problem.log_library - min(logit, 0.0) * 0.2
        problem = replace(problem, log_library=library)
        problems.append(problem.with_heads(scale_hg=torch.zeros(8, 120), scale_g=logits))
    check_count_budget(problems)
    check_count_budget(problems, "mean")


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")
@each_kind
def test_bits_of_each_kind_do_not_depend_on_threads(kind):
    problem = count_problem("zinb", seed=12, n=70, g=600, **kind)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(kernel(problem, "mean"))
    finally:
        numba.set_num_threads(before)
    assert_same_bits(*results)


@each_kind
@each_reduction
def test_each_kind_reads_no_memory_that_it_did_not_write(reduction, kind, request):
    problem = count_problem("zinb", seed=10, n=17, g=63, **kind)
    expected = kernel(problem, reduction)
    request.getfixturevalue("fresh_memory_is_nan")
    assert_same_bits(kernel(problem, reduction), expected)


# ---- memory -----------------------------------------------------------------


@each_reduction
@each_likelihood
def test_arrays_need_not_be_contiguous(likelihood, reduction):
    def strided(tensor):
        """The same numbers, every other one of a longer axis, axes swapped."""
        turned = tensor.T if tensor.ndim == 2 else tensor
        wide = torch.full((*turned.shape[:-1], 2 * turned.shape[-1]), nan)
        wide[..., ::2] = turned
        out = wide[..., ::2].T if tensor.ndim == 2 else wide[::2]
        assert not out.is_contiguous()
        assert torch.equal(out, tensor)
        return out

    problems = []
    for seed in range(8):
        p = count_problem(likelihood, seed)
        heads = {k: strided(v) for k in HEADS if (v := getattr(p.heads, k)) is not None}
        counts = replace(
            p.counts,
            indptr=torch.stack([p.counts.indptr, p.counts.indptr], 1)[:, 0],
            genes=torch.stack([p.counts.genes, p.counts.genes], 1)[:, 0],
            values=strided(p.counts.values),
        )
        problems.append(
            replace(
                p.with_heads(**heads),
                counts=counts,
                hidden=strided(p.hidden),
                log_library=strided(p.log_library),
            )
        )
    check_count_budget(problems, reduction)


@each_reduction
@each_likelihood
def test_cells_from_the_middle_of_a_matrix(likelihood, reduction):
    """Row pointers that do not start at zero."""
    problem = count_problem(likelihood, seed=9)
    rows = slice(5, 12)
    middle = replace(
        problem,
        counts=replace(problem.counts, indptr=problem.counts.indptr[5:13]),
        hidden=problem.hidden[rows],
        log_library=problem.log_library[rows],
    )
    packed = middle.with_counts(problem.counts.dense()[rows])
    assert_same_bits(kernel(middle, reduction), kernel(packed, reduction))


@each_reduction
@each_likelihood
def test_reads_no_memory_that_it_did_not_write(likelihood, reduction, request):
    problem = count_problem(likelihood, seed=10, n=17, g=63)
    expected = kernel(problem, reduction)
    request.getfixturevalue("fresh_memory_is_nan")
    assert_same_bits(kernel(problem, reduction), expected)


@each_reduction
@each_likelihood
def test_stored_zeros_are_zeros(likelihood, reduction):
    problem = count_problem(likelihood, seed=11)
    n, g = 16, 120
    stored = SparseCounts(
        torch.arange(n + 1) * g,
        torch.arange(g, dtype=torch.int32).repeat(n),
        problem.counts.dense().flatten(),
        g,
    )
    assert (stored.values == 0).any()
    assert_same_bits(kernel(replace(problem, counts=stored), reduction), kernel(problem, reduction))


@pytest.mark.parametrize(
    ("cells", "genes", "rows"),
    [
        (128, 2_000, [128]),
        (1_024, 2_000, [512, 512]),  # of 16 kB each: 8 MB
        (4_096, 20_000, [128] * 32),  # 8 MB would be 52 cells
        (100, 60_000, [50, 50]),  # 32 MB are 69 cells
        (1, 10_000_000, [1]),
    ],
)
def test_blocks_are_limited_by_cells_and_bytes(cells, genes, rows):
    heads = CountHeads(*(torch.empty(n, genes, device="meta") for n in (8, 1)))
    heads = replace(heads, scale_g=heads.scale_g[0], dropout_hg=heads.scale_hg)
    blocks = cpu._blocks(cells, heads)
    assert [block.stop - block.start for block in blocks] == rows
    assert [block.start for block in blocks] == [sum(rows[:i]) for i in range(len(rows))]


@pytest.mark.parametrize("cells_in_a_block", [1, 5])
@each_reduction
@each_likelihood
def test_blocks_keep_the_error_budget(likelihood, reduction, cells_in_a_block, monkeypatch):
    per_cell = 4 * 120 * (2 if likelihood == "zinb" else 1)
    monkeypatch.setattr(cpu, "_BLOCK_CELLS", 1)
    monkeypatch.setattr(cpu, "_BLOCK_BYTES", cells_in_a_block * per_cell)
    blocks = cpu._blocks(16, count_problem(likelihood, 0).heads)
    assert len(blocks) == math.ceil(16 / cells_in_a_block)
    assert [n for block in blocks for n in range(16)[block]] == list(range(16))
    check_count_budget((count_problem(likelihood, seed) for seed in range(8)), reduction)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")
@each_reduction
@each_likelihood
def test_bits_do_not_depend_on_threads(likelihood, reduction):
    problem = count_problem(likelihood, seed=12, n=70, g=600)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(kernel(problem, reduction))
    finally:
        numba.set_num_threads(before)
    assert_same_bits(*results)


# ---- NaN --------------------------------------------------------------------


@pytest.mark.parametrize("gene", [0, 13, 119])
@pytest.mark.parametrize(
    ("likelihood", "head"),
    [
        ("poisson", "scale_g"),
        ("nb", "scale_g"),
        ("nb", "log_theta_g"),
        ("zinb", "scale_g"),
        ("zinb", "log_theta_g"),
        ("zinb", "dropout_g"),
    ],
)
def test_nan_of_one_gene_shows_in_every_cell(likelihood, head, gene):
    problem = count_problem(likelihood, seed=13)
    values = getattr(problem.heads, head).clone()
    values[gene] = nan
    problem = problem.with_heads(**{head: values})
    assert kernel(problem)["nll"].isnan().all()
    assert kernel(problem, "mean")["nll"].isnan()


@each_likelihood
def test_nan_of_one_cell_shows_there_alone(likelihood):
    problem = count_problem(likelihood, seed=14)
    hidden, library = problem.hidden.clone(), problem.log_library.clone()
    hidden[3, 2], library[5] = nan, nan
    problem = replace(problem, hidden=hidden, log_library=library)
    expected = torch.zeros(16, dtype=torch.bool)
    expected[[3, 5]] = True
    assert torch.equal(kernel(problem)["nll"].isnan(), expected)
    assert kernel(problem, "sum")["nll"].isnan()


# ---- autograd ---------------------------------------------------------------


@each_likelihood
def test_without_gradients_the_value_is_the_same(likelihood):
    problem = count_problem(likelihood, seed=15)
    p, weight = problem, torch.rand(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = count_nll(
            *(p.counts, p.hidden, p.heads, p.log_library),
            likelihood=likelihood,
            weight_n=weight,
            reduction="sum",
            backend="cpu",
        )
    torch.testing.assert_close(result, kernel(problem, "sum", weight=weight)["nll"])


def get_inputs(problem):
    return CountNLLInputs(
        counts=problem.counts,
        hidden_nh=problem.hidden,
        heads=problem.heads,
        log_library_n=problem.log_library,
        likelihood=problem.likelihood,
        activation=problem.activation,
    )


def get_tensors(gradients):
    """The tensors of a result by name."""
    result = {k: v for k, v in vars(gradients.heads).items() if v is not None}
    return result | {k: v for k, v in vars(gradients).items() if k != "heads"}


@each_likelihood
def test_losses_outlive_the_next_call(likelihood):
    problems = [count_problem(likelihood, seed=seed, n=n) for seed, n in ((1, 16), (2, 9), (1, 16))]
    with torch.no_grad():
        result = [cpu.nll(get_inputs(p)) for p in problems]
    for p, nll in zip(problems, result, strict=True):
        assert torch.equal(nll, kernel(p)["nll"])


@pytest.mark.parametrize("kind", [{}, *KINDS.values()], ids=["", *KINDS])
@each_likelihood
def test_gradients_outlive_the_next_call(likelihood, kind):
    problem, other = (count_problem(likelihood, s, **get_kinds(likelihood, kind)) for s in (1, 2))
    result = get_tensors(cpu.nll_and_gradients(get_inputs(problem), torch.ones(16)))
    kept = {name: tensor.clone() for name, tensor in result.items()}
    cpu.nll_and_gradients(get_inputs(other), torch.ones(16))
    cpu.nll_and_gradients(get_inputs(other), torch.ones(16), results=Workspace())
    assert_same_bits(result, kept)


@pytest.mark.parametrize("kind", [{}, *KINDS.values()], ids=["", *KINDS])
@each_likelihood
def test_results_in_a_workspace_are_the_same(likelihood, kind):
    """Regardless of what earlier calls of other sizes left in it."""
    workspace = Workspace()
    for seed, n in ((1, 16), (2, 9), (3, 21), (1, 16)):
        problem = count_problem(likelihood, seed, n=n, **get_kinds(likelihood, kind))
        weight = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        result = cpu.nll_and_gradients(get_inputs(problem), weight, results=workspace)
        expected = cpu.nll_and_gradients(get_inputs(problem), weight)
        assert_same_bits(get_tensors(result), get_tensors(expected))


def test_results_in_a_workspace_that_need_several_blocks_are_the_same(monkeypatch):
    problem, workspace = count_problem("zinb", seed=1), Workspace()
    monkeypatch.setattr(cpu, "_BLOCK_CELLS", 1)
    monkeypatch.setattr(cpu, "_BLOCK_BYTES", 5 * 4 * 120)
    result = cpu.nll_and_gradients(get_inputs(problem), torch.ones(16), results=workspace)
    expected = cpu.nll_and_gradients(get_inputs(problem), torch.ones(16))
    assert_same_bits(get_tensors(result), get_tensors(expected))


def test_minibatches_of_every_size_do_not_add_memory():
    with torch.no_grad():
        cpu.nll(get_inputs(count_problem("zinb", seed=0, n=40)))
        kept = thread_workspace().kept_numbers
        for n in range(1, 40):
            cpu.nll(get_inputs(count_problem("zinb", seed=0, n=n)))
    assert thread_workspace().kept_numbers == kept


def test_python_threads_do_not_share_memory():
    """Compute losses of different cells in four threads at once."""
    problems = [count_problem("zinb", seed=seed, n=40 + seed, g=300) for seed in range(4)]
    inputs = [get_inputs(p) for p in problems]
    expected = [cpu.nll(i) for i in inputs]
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(cpu.nll, inputs * 25))
    for i, nll in enumerate(result):
        assert torch.equal(nll, expected[i % 4])


# ---- the two functions of a backend ------------------------------------------


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("kind", [{}, *KINDS.values()], ids=["", *KINDS])
@each_likelihood
def test_the_two_functions_agree_with_autograd(likelihood, kind, backend):
    problem = count_problem(likelihood, seed=4, **get_kinds(likelihood, kind))
    weight = torch.rand(16, generator=torch.Generator().manual_seed(0))
    inputs = get_inputs(problem)
    result = get_tensors(backend.nll_and_gradients(inputs, weight))
    total, nll = result.pop("total"), backend.nll(inputs)
    torch.testing.assert_close(total, (nll * weight).sum())
    exact = count_results(problem, torch.float64, reduction="sum", weight=weight)
    exact["hidden_nh"], exact["log_library_n"] = exact.pop("hidden"), exact.pop("log_library")
    torch.testing.assert_close(total.double(), exact.pop("nll"), rtol=1e-5, atol=1e-3)
    assert result.keys() == exact.keys()
    for name, gradient in exact.items():
        torch.testing.assert_close(
            result[name].double(), gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item()
        )


def test_gradients_add_up_over_calls():
    """A gradient that autograd took over is not written to by a later call."""
    p = count_problem("zinb", seed=16)
    heads = [k for k in HEADS if getattr(p.heads, k) is not None]
    leaves = {k: getattr(p.heads, k).clone().requires_grad_() for k in heads}
    kept = []
    for _ in range(2):
        heads = p.with_heads(**leaves).heads
        count_nll(
            *(p.counts, p.hidden, heads, p.log_library),
            likelihood="zinb",
            reduction="mean",
            backend="cpu",
        ).backward()
        kept.append({k: v.grad.clone() for k, v in leaves.items()})
    for name, once in kept[0].items():
        assert torch.equal(kept[1][name], 2 * once), name


def test_second_backward_is_refused():
    p = count_problem("zinb", seed=17)
    hidden = p.hidden.clone().requires_grad_()
    arguments = (p.counts, hidden, p.heads, p.log_library)
    nll = count_nll(*arguments, likelihood="zinb", reduction="mean", backend="cpu")
    nll.backward(retain_graph=True)
    with pytest.raises((RuntimeError, VivaceError), match="once"):
        nll.backward()
