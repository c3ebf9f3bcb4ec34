"""Do counts that the model draws look like the data?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vivace.cells import Cells
from vivace.data.schema import Codes
from vivace.ops.runtime.threads import question
from vivace.posterior.sample import samples
from vivace.types import F64, I64

STATISTICS = ("mean", "variance", "zero_fraction")
_INTERVAL = (0.025, 0.975)


@question
def posterior_predictive_check(
    cells: Cells,
    genes: tuple[str, ...],
    cell_names: list[str],
    n_draws: int,
    n_correlated: int,
    seed: int,
) -> pd.DataFrame:
    """Statistics of the data and of draws of p(x'|x), by gene, by cell and by pair of genes.

    One row for each statistic and gene (mean, variance, zero fraction over cells), each
    statistic and cell (the same over genes), and each pair of the ``n_correlated`` most
    variable genes (correlation of log(1 + x), or of -log(1 - x) below 0).  NaN where a gene
    is the same in all cells.  Memory grows with the rows of the result and with the draws
    times the genes, not with cells x genes.
    """
    pairs = _most_variable(cells, n_correlated)
    # by gene: one set of sums for each draw, and a last one for the data
    sums = np.zeros((n_draws + 1, 3, len(genes)))
    log_sums = np.zeros((n_draws + 1, len(pairs)))
    products = np.zeros((n_draws + 1, len(pairs), len(pairs)))
    by_cell = np.empty((len(cells), 3, 5))
    drawn: list[F64] = []
    for part, i, batch, counts in samples(cells, (Codes(),), n_draws, seed, "Checking"):
        if i == 0:
            data = batch.counts.dense().cpu()
            seen = _of_cells(data)
            _add(data, pairs, sums[-1], log_sums[-1], products[-1])
            drawn = []
        _add(counts, pairs, sums[i], log_sums[i], products[i])
        drawn.append(_of_cells(counts))
        if i == n_draws - 1:
            by_cell[part] = _against(seen, np.stack(drawn)).transpose(1, 0, 2)
    statistics = _moments(sums, len(cells))
    of_genes = _against(statistics[-1], statistics[:-1])
    of_pairs, names = _pairs(log_sums, products, len(cells), [genes[g] for g in pairs])
    frames = [_frame(s, "gene", genes, of_genes[j]) for j, s in enumerate(STATISTICS)]
    frames += [_frame(s, "cell", cell_names, by_cell[:, j]) for j, s in enumerate(STATISTICS)]
    frames.append(_frame("correlation", "gene pair", names, of_pairs))
    return pd.concat(frames, ignore_index=True)


def _most_variable(cells: Cells, n: int) -> I64:
    """The genes whose log(1 + x) varies most over the cells."""
    total = squares = torch.zeros((), dtype=torch.float64)
    for _, batch in cells.batches("Checking"):
        x = _log(batch.counts.dense()).cpu().double()
        total, squares = total + x.sum(0), squares + x.square().sum(0)
    variance = squares / len(cells) - (total / len(cells)).square()
    return np.sort(variance.numpy().argsort(kind="stable")[::-1][:n]).astype(np.int64)


def _of_cells(x_ng: Tensor) -> F64:
    """Mean, variance and zero fraction of each cell over genes, shape (3, n)."""
    found: F64 = _moments(_sums(x_ng.double(), 1)[None], x_ng.shape[1])[0]
    return found


def _sums(x_ng: Tensor, axis: int) -> F64:
    """Sums of x, of its square and of zeros; exact for counts, so that ties are ties."""
    return torch.stack([x_ng.sum(axis), x_ng.square().sum(axis), (x_ng == 0).sum(axis)]).numpy()


def _log(x: Tensor) -> Tensor:
    """Log(1 + x), mirrored below 0, where values that are not counts may lie."""
    return x.abs().log1p().copysign(x)


def _add(
    x_ng: Tensor,
    pairs: I64,
    sums: F64,
    log_sums: F64,
    products: F64,
) -> None:
    """Add a minibatch to the sums behind the statistics of genes, in place."""
    x = x_ng.double()
    sums += _sums(x, 0)
    log_x = _log(x[:, torch.from_numpy(pairs)]).numpy()
    log_sums += log_x.sum(0)
    products += log_x.T @ log_x


def _moments(sums: F64, n: int) -> F64:
    """Mean, variance and zero fraction from sums over n cells, the same shape."""
    mean = sums[:, 0] / n
    return np.stack([mean, sums[:, 1] / n - mean**2, sums[:, 2] / n], axis=1)


def _pairs(log_sums: F64, products: F64, n: int, genes: list[str]) -> tuple[F64, list[str]]:
    """The correlations of each pair, data against draws, and their names."""
    mean = log_sums / n
    covariance = products / n - mean[:, :, None] * mean[:, None, :]
    variance, square = (np.diagonal(a, axis1=1, axis2=2) for a in (covariance, products / n))
    # what rounding leaves of a gene that is the same in all cells is no variance
    deviation = np.sqrt(np.where(variance > 1e-12 * square, variance, np.nan))
    upper = np.triu_indices(len(genes), 1)
    correlation = covariance / (deviation[:, :, None] * deviation[:, None, :])
    values = correlation[:, *upper]
    names = [f"{genes[i]}, {genes[j]}" for i, j in zip(*upper, strict=True)]
    return _against(values[-1], values[:-1]), names


def _against(seen: F64, drawn: F64) -> F64:
    """Observed; mean and interval over draws; p-value, half of the ties counted: (..., 5).

    ``drawn`` has the draws in front.
    """
    lower, upper = np.quantile(drawn, _INTERVAL, axis=0)
    above = (drawn > seen).mean(0) + 0.5 * (drawn == seen).mean(0)
    mean = drawn.mean(0)
    p_value = np.where(np.isnan(seen + mean), np.nan, above)
    return np.stack([seen, mean, lower, upper, p_value], axis=-1)


def _frame(statistic: str, by: str, names: object, values: F64) -> pd.DataFrame:
    columns = dict(
        zip(("observed", "predicted", "lower", "upper", "p_value"), values.T, strict=True)
    )
    return pd.DataFrame({"statistic": statistic, "by": by, "name": names, **columns})
