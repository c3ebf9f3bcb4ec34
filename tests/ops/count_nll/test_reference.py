"""The reference compared with SciPy and 40-digit arithmetic; its gradient; refused arguments."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from scipy import special, stats

from budget import Budget
from problems import COUNTS as COUNT_LIKELIHOODS
from problems import HEADS, count_problem, count_results
from vivace.errors import OptionError, ShapeError
from vivace.ops import CountHeads, count_nll
from vivace.ops.count_nll import LIKELIHOODS
from vivace.ops.count_nll.reference import log_scale, nb_nll, poisson_nll, zinb_nll
from vivace.ops.csr import SparseCounts

# ---- values at 40 digits ----------------------------------------------------

COUNTS = (0, 1, 2, 31, 32, 33, 34, 1e3, 1e6, 0.5, 33.75)
LOG_MUS = (-20.0, -5.0, 0.0, 3.0, 14.0)
LOG_THETAS = (-15.0, -3.0, 0.0, 5.0, 15.0)
ZI_LOGITS = (-60.0, -1.0, 0.0, 1.0, 60.0)

_log_gamma = lru_cache(None)(mpmath.loggamma)


def exact_poisson(x, log_mu):
    terms = mpmath.exp(log_mu), -x * log_mu, _log_gamma(x + 1)
    return sum(terms), sum(map(abs, terms))


@lru_cache(None)
def exact_nb(x, log_mu, log_theta):
    theta, mu = mpmath.exp(log_theta), mpmath.exp(log_mu)
    both = mpmath.log(theta + mu)
    terms = (
        *(_log_gamma(x + 1), _log_gamma(theta), -_log_gamma(x + theta)),
        *(theta * (both - log_theta), x * (both - log_mu)),
    )
    return sum(terms), sum(map(abs, terms))


def exact_zinb(x, log_mu, log_theta, zi_logits):
    nb, size = exact_nb(x, log_mu, log_theta)
    dropped = 1 / (1 + mpmath.exp(-zi_logits))
    if x == 0:
        return -mpmath.log(dropped + (1 - dropped) * mpmath.exp(-nb)), size + abs(zi_logits)
    return nb - mpmath.log(1 - dropped), size + abs(zi_logits)


@pytest.mark.parametrize(
    ("reference", "exact", "axes"),
    [
        (poisson_nll, exact_poisson, (COUNTS, LOG_MUS)),
        (nb_nll, exact_nb, (COUNTS, LOG_MUS, LOG_THETAS)),
        (zinb_nll, exact_zinb, (COUNTS, LOG_MUS, LOG_THETAS, ZI_LOGITS)),
    ],
    ids=["poisson", "nb", "zinb"],
)
def test_value_against_forty_digits(reference, exact, axes, device, exact_dtype):
    """The error is at most the rounding error of the terms in the sum."""
    points = list(product(*axes))
    columns = torch.tensor(points, dtype=exact_dtype, device=device).unbind(1)
    result = reference(*columns).cpu().double().numpy()
    with mpmath.workdps(40):
        value, size = np.array([exact(*map(mpf, p)) for p in points]).astype(float).T
    rounding = torch.finfo(exact_dtype).eps * (1 + size)
    assert np.all(np.abs(result - value) <= 16 * rounding)


def test_theta_is_held_within_bounds(device, exact_dtype):
    x, log_mu, beyond, bound = torch.tensor(
        [[0, 3, 0, 3], [1, 1, 1, 1], [16, 100, -16, -100], [15, 15, -15, -15]],
        dtype=exact_dtype,
        device=device,
    )
    assert torch.equal(nb_nll(x, log_mu, beyond), nb_nll(x, log_mu, bound))
    assert torch.equal(zinb_nll(x, log_mu, beyond, x), zinb_nll(x, log_mu, bound, x))


@pytest.mark.parametrize("logit", [-200.0, -37.5, -36.5, -15.0, -1.0, 0.0, 1.0, 15.0, 60.0])
def test_log_of_softplus_is_accurate(logit, device, exact_dtype):
    result = log_scale(torch.tensor([[logit]], dtype=exact_dtype, device=device), "softplus").item()
    with mpmath.workdps(40):
        exact = float(mpmath.log(mpmath.log1p(mpmath.exp(mpf(logit)))))
    assert abs(result - exact) <= 4 * torch.finfo(exact_dtype).eps * (1 + abs(exact))


# ---- whole cells against SciPy ----------------------------------------------


def scipy_nll(problem, activation):
    """-log p of each cell, from SciPy's distributions."""
    heads = {
        k: None if v is None else _move(v, "cpu").numpy() for k, v in vars(problem.heads).items()
    }
    hidden, x = problem.hidden.double().numpy(), problem.counts.dense().numpy()
    logits = hidden @ heads["scale_hg"] + heads["scale_g"]
    scale = special.softmax(logits, -1) if activation == "softmax" else np.logaddexp(0, logits)
    mu = np.exp(problem.log_library.double().numpy())[:, None] * scale
    if problem.likelihood == "poisson":
        return -stats.poisson.logpmf(x, mu).sum(-1)
    if heads["theta_hg"] is not None:
        theta = np.exp(hidden @ heads["theta_hg"] + heads["theta_bias_g"])
    elif heads["theta_row_n"] is not None:
        theta = np.exp(heads["log_theta_g"])[heads["theta_row_n"]]
    else:
        theta = np.exp(heads["log_theta_g"])
    if problem.likelihood == "normal":
        return -stats.norm.logpdf(x, mu, theta).sum(-1)
    log_p = stats.nbinom.logpmf(x, theta, theta / (theta + mu))
    if problem.likelihood == "zinb":
        logits = hidden @ heads["dropout_hg"] + heads["dropout_g"]
        kept = special.log_expit(-logits) + log_p
        log_p = np.where(x == 0, np.logaddexp(special.log_expit(logits), kept), kept)
    return -log_p.sum(-1)


def _move(tensor, device):
    if tensor is None:
        return None
    return (tensor.double() if tensor.is_floating_point() else tensor).to(device)


@pytest.mark.parametrize("dispersion", ["shared", "table", "head"])
@pytest.mark.parametrize("activation", ["softmax", "softplus"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_cells_against_scipy(likelihood, activation, dispersion, device_with_float64):
    dispersion = "shared" if likelihood == "poisson" else dispersion
    problem = count_problem(likelihood, seed=1, n=7, g=30, dispersion=dispersion)
    expected = torch.from_numpy(scipy_nll(problem, activation))
    moved = {k: _move(v, device_with_float64) for k, v in vars(problem.heads).items()}
    result = count_nll(
        replace(problem.counts, values=problem.counts.values.double()).to(device_with_float64),
        problem.hidden.double().to(device_with_float64),
        CountHeads(**moved),
        problem.log_library.double().to(device_with_float64),
        likelihood=likelihood,
        activation=activation,
    )
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("likelihood", COUNT_LIKELIHOODS)
def test_probabilities_sum_to_one(likelihood):
    """Over all counts with non-negligible probability; reference and kernel."""
    budget = Budget()
    for log_mu, log_theta, zi_logits in product((-3.0, 0.0, 2.0), (-1.0, 1.0, 4.0), (-2.0, 3.0)):
        x = torch.arange(1500.0)[:, None]  # g = 1: softmax is 1, the library is the mean
        heads = CountHeads(*(torch.full(s, 0.0) for s in ((1, 1), (1,))))
        if likelihood != "poisson":
            heads = replace(heads, log_theta_g=torch.tensor([log_theta]))
        if likelihood == "zinb":
            zero = torch.zeros(1, 1)
            heads = replace(heads, dropout_hg=zero, dropout_g=torch.tensor([zi_logits]))
        problem = replace(
            count_problem("poisson", seed=0, n=1, g=1),
            likelihood=likelihood,
            counts=SparseCounts.from_dense(x),
            hidden=torch.zeros(len(x), 1),
            heads=heads,
            log_library=torch.full((len(x),), log_mu),
        )
        totals = []
        for dtype, backend in (
            (torch.float32, "cpu"),
            (torch.float32, "reference"),
            (torch.float64, "reference"),
        ):
            nll = count_results(problem, dtype, backend=backend)["nll"]
            totals.append((-nll.double()).exp().sum())
        kernel, single, exact = totals
        assert abs(exact.item() - 1) < 1e-12
        budget.add("total", kernel.float(), single.float(), torch.ones_like(exact))
    budget.check()


# ---- gradient of the reference ----------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("activation", ["softmax", "softplus"])
@pytest.mark.parametrize("dispersion", ["shared", "table", "head"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradcheck(likelihood, dispersion, activation, reduction, weighted, device_with_float64):
    dispersion = "shared" if likelihood == "poisson" else dispersion
    options = {"dispersion": dispersion, "activation": activation}
    problem = count_problem(likelihood, seed=2, n=3, g=5, h=2, **options)
    gen = torch.Generator().manual_seed(3)

    def to_device(tensor):
        return tensor.double().to(device_with_float64)

    names = [k for k in HEADS if getattr(problem.heads, k) is not None]
    inputs = [
        to_device(t).requires_grad_()
        for t in (problem.hidden, problem.log_library, *(vars(problem.heads)[k] for k in names))
    ]
    row = _move(problem.heads.theta_row_n, device_with_float64)
    counts = SparseCounts.from_dense(to_device(problem.counts.dense()))
    weight = to_device(torch.rand(3, generator=gen)) if weighted else None
    upstream = to_device(torch.randn(3 if reduction == "none" else (), generator=gen))

    def loss(hidden, log_library, *heads):
        nll = count_nll(
            counts,
            hidden,
            CountHeads(**dict(zip(names, heads, strict=True)), theta_row_n=row),
            log_library,
            likelihood=likelihood,
            activation=activation,
            weight_n=weight,
            reduction=reduction,
            backend="reference",
        )
        return (nll * upstream).sum()

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_reductions_match_their_definition(backend, weighted):
    problem = count_problem("zinb", seed=4)
    n = problem.counts.n_cells
    weight = torch.rand(n, generator=torch.Generator().manual_seed(5)) if weighted else None
    each = count_results(problem, torch.float32, backend=backend)["nll"]
    total = (each * (1 if weight is None else weight)).sum()
    for reduction, expected in (("sum", total), ("mean", total / n)):
        options = {"backend": backend, "reduction": reduction, "weight": weight}
        result = count_results(problem, torch.float32, **options)["nll"]
        assert result.shape == ()
        torch.testing.assert_close(result, expected)


# ---- what it refuses --------------------------------------------------------


def arguments(likelihood="zinb", **changes):
    problem = count_problem(likelihood, seed=0, n=4, g=6, h=3)
    heads = {k: changes.pop(k) for k in HEADS if k in changes}
    problem = replace(problem, heads=changes.pop("heads", problem.heads))
    return {
        "counts": problem.counts,
        "hidden_nh": problem.hidden,
        "heads": replace(problem.heads, **heads),
        "log_library_n": problem.log_library,
        "likelihood": likelihood,
    } | changes


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("hidden_nh", (5, 3)),
        ("hidden_nh", (4,)),
        ("scale_hg", (6, 3)),
        ("scale_g", (5,)),
        ("log_theta_g", (6, 1)),
        ("dropout_hg", (3, 7)),
        ("dropout_g", (1, 6)),
        ("log_library_n", (4, 1)),
        ("weight_n", (3,)),
    ],
)
def test_shapes_that_disagree_are_named(name, shape, refused):
    with refused(ShapeError, name, str(shape), "4 cells x 6 genes"):
        count_nll(**arguments(**{name: torch.zeros(shape)}))


@pytest.mark.parametrize(
    ("likelihood", "name", "value", "problem"),
    [
        ("zinb", "dropout_hg", None, "needs"),
        ("zinb", "dropout_g", None, "needs"),
        ("nb", "log_theta_g", None, "needs"),
        ("nb", "dropout_g", torch.zeros(6), "has no"),
        ("poisson", "log_theta_g", torch.zeros(6), "has no"),
    ],
)
def test_heads_that_do_not_fit_are_named(likelihood, name, value, problem, refused):
    with refused(OptionError, likelihood, problem, name):
        count_nll(**arguments(likelihood, **{name: value}))


def test_kernel_is_refused_where_it_does_not_apply(refused):
    with refused(OptionError, "backend='cpu'", "normal"):
        count_nll(**arguments("normal", backend="cpu"))
    double = count_problem("zinb", seed=0, n=4, g=6, h=3).log_library.double()
    with refused(OptionError, "backend='cpu'", "float32"):
        count_nll(**arguments(log_library_n=double, backend="cpu"))


@pytest.mark.parametrize("row", [-1, 5, 10**8])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_outside_the_table_are_refused(row, backend, refused):
    problem = count_problem("nb", seed=0, n=4, g=6, h=3, dispersion="table")
    rows = problem.heads.theta_row_n.clone()
    rows[2] = row
    heads = replace(problem.heads, theta_row_n=rows)
    with refused(OptionError, "theta_row_n", "0 to 4", str(row)):
        count_nll(**arguments("nb", heads=heads, backend=backend))
    heads = replace(problem.heads, theta_row_n=problem.heads.theta_row_n.int())
    with refused(OptionError, "theta_row_n", "int32"):
        count_nll(**arguments("nb", heads=heads, backend=backend))
