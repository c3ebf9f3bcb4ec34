"""Random inputs for the operations, and their values and gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from budget import Budget
from vivace.ops import CountHeads, count_nll
from vivace.ops.count_nll import LIKELIHOODS
from vivace.ops.count_nll.reference import log_dispersion
from vivace.ops.csr import SparseCounts

HEADS = (
    "scale_hg", "scale_g", "log_theta_g", "dropout_hg", "dropout_g", "theta_hg", "theta_bias_g",
)  # fmt: skip
COUNTS = ("poisson", "nb", "zinb")  # the likelihoods of counts, which have kernels


@dataclass(frozen=True)
class CountProblem:
    """All inputs of ``count_nll``, in float32."""

    likelihood: str
    counts: SparseCounts
    hidden: Tensor
    heads: CountHeads
    log_library: Tensor
    activation: str = "softmax"

    def with_counts(self, x_ng: Tensor) -> CountProblem:
        return replace(self, counts=SparseCounts.from_dense(x_ng))

    def with_heads(self, **heads: Tensor) -> CountProblem:
        """Replace the heads that the likelihood has."""
        there = {k: v for k, v in heads.items() if getattr(self.heads, k) is not None}
        return replace(self, heads=replace(self.heads, **there))


def count_problem(
    likelihood: str,
    seed: int,
    n: int = 16,
    g: int = 120,
    h: int = 8,
    spread: float = 1.0,
    dispersion: str = "shared",
    activation: str = "softmax",
) -> CountProblem:
    """Counts sampled from the likelihood itself; ``spread`` widens the range of theta and dropout.

    ``dispersion`` is "shared" by all cells, "table" (five rows, of which one has
    no cell) or "head".
    """
    gen = torch.Generator().manual_seed(seed)
    family = LIKELIHOODS[likelihood]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=gen)

    hidden = normal(n, h).relu()
    heads = CountHeads(
        normal(h, g) / h**0.5,
        normal(g),
        spread * 1.5 * normal(g) if family.dispersed else None,
        normal(h, g) / h**0.5 if family.zero_inflated else None,
        spread * normal(g) if family.zero_inflated else None,
    )
    log_library = 3.0 + (3.0 + 3.0 * spread) * torch.rand(n, generator=gen)
    if dispersion == "table":
        row = torch.randint(4, (n,), generator=gen)
        heads = replace(heads, log_theta_g=spread * 1.5 * normal(5, g), theta_row_n=row)
    if dispersion == "head":
        head = {"theta_hg": normal(h, g) / h**0.5, "theta_bias_g": spread * normal(g)}
        heads = replace(heads, log_theta_g=None, **head)
    logits = hidden @ heads.scale_hg + heads.scale_g
    log_scale = logits.log_softmax(-1)
    if activation == "softplus":  # the same counts in all
        log_scale = torch.nn.functional.softplus(logits).log()
        log_library = log_library - log_scale.exp().sum(-1).log()
    mean = (log_scale + log_library[:, None]).exp().double().numpy()
    rng = np.random.default_rng(seed)
    log_theta = log_dispersion(heads, hidden)
    if log_theta is not None and likelihood != "normal":
        theta = log_theta.double().clamp(-15, 15).exp().numpy()
        mean = mean * rng.gamma(np.broadcast_to(theta, mean.shape)) / theta
    if likelihood == "normal":  # theta is the standard deviation
        x = rng.normal(mean, log_theta.double().exp().numpy())
        counts = SparseCounts.from_dense(torch.from_numpy(x.astype(np.float32)))
        return CountProblem(likelihood, counts, hidden, heads, log_library, activation)
    x = rng.poisson(mean.clip(max=1e8))
    if heads.dropout_hg is not None:
        zi_logits = (hidden @ heads.dropout_hg + heads.dropout_g).numpy()
        x = np.where(rng.random(x.shape) < 1 / (1 + np.exp(-zi_logits)), 0, x)
    counts = SparseCounts.from_dense(torch.from_numpy(x.astype(np.float32)))
    return CountProblem(likelihood, counts, hidden, heads, log_library, activation)


def count_results(
    problem: CountProblem,
    dtype: torch.dtype,
    *,
    backend: str = "reference",
    activation: str | None = None,
    reduction: str = "none",
    weight: Tensor | None = None,
    upstream: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss, and the gradients that ``upstream`` (None: ones) gives, by name."""
    counts = replace(problem.counts, values=problem.counts.values.to(dtype))
    inputs = {"hidden": problem.hidden, "log_library": problem.log_library}
    inputs |= {k: v for k in HEADS if (v := getattr(problem.heads, k)) is not None}
    leaves = {k: v.to(dtype, copy=True).requires_grad_() for k, v in inputs.items()}
    nll = count_nll(
        counts,
        leaves["hidden"],
        CountHeads(
            **{k: leaves[k] for k in HEADS if k in leaves}, theta_row_n=problem.heads.theta_row_n
        ),
        leaves["log_library"],
        likelihood=problem.likelihood,
        activation=activation or problem.activation,
        weight_n=None if weight is None else weight.to(dtype),
        reduction=reduction,
        backend=backend,
    )
    nll.backward(torch.ones_like(nll) if upstream is None else upstream.to(dtype))
    return {"nll": nll.detach()} | {k: v.grad for k, v in leaves.items()}


def check_count_budget(
    problems: Iterable[CountProblem], reduction: str = "none", *, weighted: bool = False
) -> None:
    """Check the kernel against the budget on these problems, with random upstream gradients."""
    budget = Budget()
    for i, problem in enumerate(problems):
        gen = torch.Generator().manual_seed(i)
        n = problem.counts.n_cells
        options = {
            "reduction": reduction,
            "upstream": torch.randn((n,) if reduction == "none" else (), generator=gen),
            "weight": torch.rand(n, generator=gen) if weighted else None,
        }
        kernel = count_results(problem, torch.float32, backend="cpu", **options)
        single = count_results(problem, torch.float32, **options)
        exact = count_results(problem, torch.float64, **options)
        for name in exact:
            budget.add(name, kernel[name], single[name], exact[name])
    budget.check()
