"""Shapes, expansion, attributes and refused arguments."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Distribution, Independent, constraints

from vivace.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from vivace.errors import ArgumentTypeError, DataError, OptionError, ShapeError

MU = torch.tensor([[1.0, 2.0, 30.0], [0.5, 0.0, 4.0]])
THETA = torch.tensor([0.3, 2.0, 50.0])
SCALE = MU / MU.sum(-1, keepdim=True)
EACH = {
    "nb": lambda **k: NegativeBinomial(mu=MU, theta=THETA, scale=SCALE, **k),
    "counts": lambda **k: NegativeBinomial(THETA, logits=MU.log1p(), scale=SCALE, **k),
    "zinb": lambda **k: ZeroInflatedNegativeBinomial(
        mu=MU, theta=THETA, zi_logits=torch.tensor([[0.5], [-2.0]]), scale=SCALE, **k
    ),
    "poisson": lambda **k: Poisson(MU, scale=SCALE, **k),
    "normal": lambda **k: Normal(MU, THETA, normal_mu=SCALE, **k),
}


@pytest.fixture(params=EACH)
def make(request):
    return EACH[request.param]


def test_is_a_torch_distribution(make):
    d = make()
    assert isinstance(d, Distribution)
    assert d.batch_shape == (2, 3)
    assert d.event_shape == ()
    assert not d.support.is_discrete or d.support is constraints.nonnegative_integer
    assert d.sample().shape == (2, 3)
    assert d.sample((4,)).shape == d.sample([4]).shape == (4, 2, 3)
    assert d.sample(torch.Size()).dtype == torch.float32
    torch.testing.assert_close(d.stddev, d.variance.sqrt())
    for name, constraint in d.arg_constraints.items():
        assert constraint.check(getattr(d, name)).all()
    whole = Independent(d, 1)
    x = d.sample((4,))
    torch.testing.assert_close(whole.log_prob(x), d.log_prob(x).sum(-1))


def test_expansion_keeps_values_and_samples(make):
    d = make()
    wide = d.expand((5, 2, 3))
    assert type(wide) is type(d)
    assert wide.batch_shape == (5, 2, 3)
    x = d.sample((5,))
    for name in ("mean", "variance"):
        assert torch.equal(getattr(wide, name), getattr(d, name).expand(5, 2, 3))
    assert torch.equal(wide.log_prob(x), d.log_prob(x))
    assert torch.equal(wide.cdf(x), d.cdf(x))
    assert wide.mean.untyped_storage().size() <= d.mean.untyped_storage().size() * 5
    seeded = (torch.Generator().manual_seed(1) for _ in range(2))
    samples = [
        e.sample(s, generator=g) for e, s, g in zip((wide, d), ((), (5,)), seeded, strict=True)
    ]
    assert torch.equal(*samples)
    assert not make(validate_args=False).expand((1, 2, 3))._validate_args
    again = wide.expand((7, 5, 2, 3))
    assert again.sample().shape == (7, 5, 2, 3)


def test_expression_is_carried(make):
    d = make()
    name = "normal_mu" if isinstance(d, Normal) else "scale"
    assert torch.equal(getattr(d, name), SCALE)
    assert getattr(d.expand((5, 2, 3)), name).shape == (5, 2, 3)


def test_expression_may_be_left_out():
    assert NegativeBinomial(mu=MU, theta=THETA).expand((2, 2, 3)).scale is None
    assert ZeroInflatedNegativeBinomial(mu=MU, theta=1.0, zi_logits=0.0).scale is None
    assert Poisson(MU).scale is None
    assert Normal(MU, 1.0).expand((2, 2, 3)).normal_mu is None


def test_broadcasting_over_everything():
    d = ZeroInflatedNegativeBinomial(
        mu=torch.ones(4, 1), theta=torch.ones(3), zi_logits=torch.zeros(2, 1, 1)
    )
    assert d.batch_shape == (2, 4, 3)
    for name in ("mu", "theta", "zi_logits", "zi_probs", "mean", "variance", "total_count"):
        assert getattr(d, name).shape == (2, 4, 3)
    assert d.log_prob(torch.tensor(0.0)).shape == (2, 4, 3)
    assert d.log_prob(torch.zeros(5, 2, 4, 3)).shape == (5, 2, 4, 3)
    assert d.cdf(torch.zeros(3)).shape == (2, 4, 3)


def test_parameters_may_be_numbers_and_keep_their_type():
    assert NegativeBinomial(mu=2, theta=3).batch_shape == ()
    assert NegativeBinomial(mu=2, theta=3).sample().dtype == torch.float32
    # a Python number is not rounded to float32 on its way to float64
    d = NegativeBinomial(mu=torch.tensor([2.0], dtype=torch.float64), theta=0.1)
    assert d.theta.item() == 0.1
    assert NegativeBinomial(mu=torch.tensor([2]), theta=1).mu.dtype == torch.float32
    assert d.log_prob(torch.tensor([2])).dtype == torch.float64
    assert Poisson(2.0).log_prob(torch.tensor([2], dtype=torch.int32)).dtype == torch.float32
    assert Poisson(2.0).log_prob(torch.tensor([2.0], dtype=torch.float64)).dtype == torch.float64


def test_an_empty_batch_has_empty_results():
    d = ZeroInflatedNegativeBinomial(mu=torch.ones(0, 3), theta=torch.ones(3), zi_logits=0.0)
    assert d.sample().shape == d.log_prob(torch.ones(0, 3)).shape == (0, 3)


def test_non_contiguous_values_and_parameters():
    generator = torch.Generator().manual_seed(0)
    mu, theta, zi = torch.rand(3, 6, 8, generator=generator).transpose(1, 2).unbind(0)
    d = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zi)
    x = d.sample((2,), generator=generator).transpose(1, 2)[:, ::2].transpose(1, 2)
    part = ZeroInflatedNegativeBinomial(
        mu=mu[:, ::2].clone(), theta=theta[:, ::2].clone(), zi_logits=zi[:, ::2].clone()
    )
    strided = ZeroInflatedNegativeBinomial(mu=mu[:, ::2], theta=theta[:, ::2], zi_logits=zi[:, ::2])
    assert torch.equal(strided.log_prob(x), part.log_prob(x.clone()))


def test_repr_names_the_parameters():
    assert repr(Poisson(2.0)) == "Poisson(rate: 2.0)"
    assert repr(NegativeBinomial(mu=MU, theta=0.5)) == "NegativeBinomial(mu: (2, 3), theta: (2, 3))"
    assert "zi_logits" in repr(ZeroInflatedNegativeBinomial(mu=MU, theta=0.5, zi_logits=0.0))


# ---- what is refused --------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "parameters", "parts"),
    [
        (NegativeBinomial, {"mu": 1.0}, ["mu and theta", "given mu"]),
        (NegativeBinomial, {}, ["none of them"]),
        (NegativeBinomial, {"mu": 1.0, "logits": 1.0}, ["given logits and mu"]),
        (NegativeBinomial, {"total_count": 1.0, "logits": 0.0, "probs": 0.5}, ["one of"]),
        (NegativeBinomial, {"total_count": 1.0, "theta": 1.0, "mu": 1.0}, ["total_count"]),
        (ZeroInflatedNegativeBinomial, {"mu": 1.0, "theta": 1.0}, ["zi_logits"]),
        (ZeroInflatedNegativeBinomial, {"mu": 1.0, "zi_logits": 1.0}, ["mu and theta"]),
    ],
)
def test_incomplete_or_redundant_parameters_are_refused(kind, parameters, parts, refused):
    with refused(OptionError, kind.__name__, *parts):
        kind(**parameters, validate_args=False)


@pytest.mark.parametrize(
    ("kind", "parameters", "name"),
    [
        *((NegativeBinomial, {"mu": v, "theta": 1.0}, "mu") for v in (-1.0, NAN, INF)),
        *((NegativeBinomial, {"mu": 1.0, "theta": v}, "theta") for v in (0.0, -1.0, NAN, INF)),
        (NegativeBinomial, {"total_count": 0.0, "logits": 1.0}, "total_count"),
        *((NegativeBinomial, {"total_count": 1.0, "logits": v}, "logits") for v in (NAN, 100.0)),
        *((NegativeBinomial, {"total_count": 1.0, "probs": v}, "probs") for v in (-0.1, 1.0, NAN)),
        (ZeroInflatedNegativeBinomial, {"mu": -1.0, "theta": 1.0, "zi_logits": 0.0}, "mu"),
        (ZeroInflatedNegativeBinomial, {"mu": 1.0, "theta": 1.0, "zi_logits": NAN}, "zi_logits"),
        *((Poisson, {"rate": v}, "rate") for v in (-1.0, NAN, INF)),
        (Normal, {"mu": NAN, "scale": 1.0}, "mu"),
        (Normal, {"mu": 0.0, "scale": 0.0}, "scale"),
    ],
)
def test_parameters_out_of_range_are_refused(kind, parameters, name, refused):
    with refused(OptionError, name, kind.__name__, f"{parameters[name]:g}"):
        kind(**parameters, validate_args=True)
    kind(**parameters, validate_args=False)
    entries = {k: torch.tensor([[1.0, v]]) if k == name else v for k, v in parameters.items()}
    if name != "probs":
        with refused(OptionError, name, kind.__name__, "entry (0, 1)"):
            kind(**entries, validate_args=True)


def test_values_that_are_not_counts_are_refused(make, refused):
    d, careless = make(), make(validate_args=False)
    wrong = (NAN,) if isinstance(d, Normal) else (-1.0, 0.5, NAN)
    for value in wrong:
        x = torch.zeros(2, 3)
        x[1, 2] = value
        for method in ("log_prob", "cdf"):
            with refused(DataError, type(d).__name__, "entry (1, 2)", f"{value:g}"):
                getattr(d, method)(x)
            with refused(DataError, f"{value:g}"):
                getattr(d, method)(torch.tensor(value))
            getattr(careless, method)(x)


def test_values_of_another_shape_are_refused(make, refused):
    for d in (make(), make(validate_args=False)):
        for method in (d.log_prob, d.cdf):
            if isinstance(d, Normal) and not d._validate_args:
                continue  # torch's own
            with refused(ShapeError, "(2, 4)", "(2, 3)", type(d).__name__):
                method(torch.zeros(2, 4))
            with refused(ArgumentTypeError, "list", type(d).__name__):
                method([0.0])


def test_parameters_of_different_shapes_are_refused(refused):
    for make in (
        lambda **k: NegativeBinomial(mu=torch.ones(2, 3), **k),
        lambda **k: ZeroInflatedNegativeBinomial(mu=torch.ones(2, 3), zi_logits=0.0, **k),
    ):
        with refused(ShapeError, "mu (2, 3)", "theta (2,)"):
            make(theta=torch.ones(2))
        with refused(ArgumentTypeError, "theta", "list"):
            make(theta=[1.0])
        with refused(ShapeError, "scale (4,)", "(2, 3)"):
            make(theta=1.0, scale=torch.ones(4))
    with refused(ShapeError, "zi_logits (2,)", "mu (2, 3)"):
        ZeroInflatedNegativeBinomial(mu=torch.ones(2, 3), theta=1.0, zi_logits=torch.ones(2))
    with refused(ArgumentTypeError, "rate of Poisson", "bool"):
        Poisson(True)
    with refused(ShapeError, "normal_mu"):
        Normal(torch.ones(3), 1.0, normal_mu=torch.ones(4))
