"""Do counts that the model samples look like the data?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from vivace.cells import Cells, question
from vivace.core import Core
from vivace.data.schema import Codes
from vivace.errors import OptionError
from vivace.questions.sample import sample_counts
from vivace.types import F64, I64, Indices
from vivace.validate import COUNT

STATISTICS = ("mean", "variance", "zero_fraction")
_INTERVAL = (0.025, 0.975)


@question(n_samples=COUNT, n_correlated=COUNT)
def posterior_predictive_check(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    n_samples: int = 20,
    *,
    n_correlated: int = 50,
    batch_size: int | None = None,
    seed: int | None = None,
    silent: bool = False,
) -> pd.DataFrame:
    """Compare statistics of the data with those of samples: is the model adequate for the data?

    Mean, variance and fraction of zeros, by gene (over cells) and by cell (over genes),
    and the correlation of pairs of genes, of the data and of posterior predictive
    samples. :func:`vivace.report.draw_check` plots the frame, of one model or of
    several; :func:`vivace.report.summarise_check` says in a few rows how well it fits.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`. Cells that were not trained on
        (:attr:`validation_indices`) are a harder test.
    n_samples
        Samples per cell.
    n_correlated
        Number of genes whose pairs are correlated: those that vary most, on log(1 + x).
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    Frame with one row for each statistic and gene, cell or pair: ``statistic`` ("mean",
    "variance", "zero_fraction", "correlation"), ``by`` ("gene", "cell", "gene pair"),
    ``name``, ``observed``, ``predicted`` (mean over samples), ``lower`` and ``upper`` (95 %
    of the samples lie between), ``p_value`` (share of samples above the observed value; ties
    count half). NaN where a gene has the same value in all cells.

    Notes
    -----
    Memory grows with the rows of the result and with samples x genes, not with cells x genes.
    Source: Gelman, Meng and Stern 1996, Statistica Sinica 6, 733.
    """
    cells = self._cells(adata, indices, batch_size, silent, counts=True)
    n_cells, genes = len(cells), self.schema.genes
    if n_cells == 0:
        raise OptionError("indices selects no cells; a check needs at least one.")
    cell_names = list(self._resolve_adata(adata).obs_names[cells.rows])
    pairs = _most_variable(cells, n_correlated)
    # sums over cells: one set per sample, and a last one for the data
    sums = np.zeros((n_samples + 1, 3, len(genes)))
    log_sums = np.zeros((n_samples + 1, len(pairs)))
    products = np.zeros((n_samples + 1, len(pairs), len(pairs)))
    cell_values = np.empty((n_cells, 3, 5))
    sampled: list[F64] = []
    samples = sample_counts(cells, (Codes(),), n_samples, self._seeds.take(seed), "Checking")
    for part, i, batch, x_ng in samples:
        if i == 0:
            data_ng = batch.counts.dense().cpu()
            observed = _cell_statistics(data_ng)
            _add(data_ng, pairs, sums[-1], log_sums[-1], products[-1])
            sampled = []
        _add(x_ng, pairs, sums[i], log_sums[i], products[i])
        sampled.append(_cell_statistics(x_ng))
        if i == n_samples - 1:
            cell_values[part] = _compare(observed, np.stack(sampled)).transpose(1, 0, 2)
    statistics = _moments(sums, n_cells)
    gene_values = _compare(statistics[-1], statistics[:-1])
    pair_values, names = _correlations(log_sums, products, n_cells, [genes[g] for g in pairs])
    frames = [_frame(s, "gene", genes, gene_values[j]) for j, s in enumerate(STATISTICS)]
    frames += [_frame(s, "cell", cell_names, cell_values[:, j]) for j, s in enumerate(STATISTICS)]
    frames.append(_frame("correlation", "gene pair", names, pair_values))
    return pd.concat(frames, ignore_index=True)


def _most_variable(cells: Cells, n: int) -> I64:
    """The genes whose log(1 + x) varies most over the cells."""
    total = squares = torch.zeros((), dtype=torch.float64)
    for _, batch in cells.batches("Checking"):
        x_ng = _log1p(batch.counts.dense()).cpu().double()
        total, squares = total + x_ng.sum(0), squares + x_ng.square().sum(0)
    variance = squares / len(cells) - (total / len(cells)).square()
    return np.sort(variance.numpy().argsort(kind="stable")[::-1][:n]).astype(np.int64)


def _cell_statistics(x_ng: Tensor) -> F64:
    """Mean, variance and zero fraction of each cell over genes, shape (3, n)."""
    statistics: F64 = _moments(_sums(x_ng.double(), 1)[None], x_ng.shape[1])[0]
    return statistics


def _sums(x_ng: Tensor, axis: int) -> F64:
    """Sums of x, of its square and of zeros; exact for counts, so ties are ties."""
    return torch.stack([x_ng.sum(axis), x_ng.square().sum(axis), (x_ng == 0).sum(axis)]).numpy()


def _log1p(x: Tensor) -> Tensor:
    """Log(1 + x), mirrored below 0, where values that are not counts may lie."""
    return x.abs().log1p().copysign(x)


def _add(x_ng: Tensor, pairs: I64, sums: F64, log_sums: F64, products: F64) -> None:
    """Add a minibatch to the sums behind the statistics of genes, in place."""
    x = x_ng.double()
    sums += _sums(x, 0)
    log_x = _log1p(x[:, torch.from_numpy(pairs)]).numpy()
    log_sums += log_x.sum(0)
    products += log_x.T @ log_x


def _moments(sums: F64, n: int) -> F64:
    """Mean, variance and zero fraction from sums over n values, the same shape."""
    mean = sums[:, 0] / n
    return np.stack([mean, sums[:, 1] / n - mean**2, sums[:, 2] / n], axis=1)


def _correlations(log_sums: F64, products: F64, n: int, genes: list[str]) -> tuple[F64, list[str]]:
    """The correlation of each pair, data against samples, and the names of the pairs."""
    mean = log_sums / n
    covariance = products / n - mean[:, :, None] * mean[:, None, :]
    variance, square = (np.diagonal(a, axis1=1, axis2=2) for a in (covariance, products / n))
    # the rounding error of a constant gene is not variance
    deviation = np.sqrt(np.where(variance > 1e-12 * square, variance, np.nan))
    upper = np.triu_indices(len(genes), 1)
    correlation = covariance / (deviation[:, :, None] * deviation[:, None, :])
    values = correlation[:, *upper]
    names = [f"{genes[i]}, {genes[j]}" for i, j in zip(*upper, strict=True)]
    return _compare(values[-1], values[:-1]), names


def _compare(observed: F64, sampled: F64) -> F64:
    """Observed value, mean and interval over samples, p-value with half of the ties: (..., 5).

    The first axis of ``sampled`` is that of the samples.
    """
    lower, upper = np.quantile(sampled, _INTERVAL, axis=0)
    share_above = (sampled > observed).mean(0) + 0.5 * (sampled == observed).mean(0)
    mean = sampled.mean(0)
    p_value = np.where(np.isnan(observed + mean), np.nan, share_above)
    return np.stack([observed, mean, lower, upper, p_value], axis=-1)


def _frame(statistic: str, unit: str, names: object, values: F64) -> pd.DataFrame:
    columns = ("observed", "predicted", "lower", "upper", "p_value")
    numbers = dict(zip(columns, values.T, strict=True))
    return pd.DataFrame({"statistic": statistic, "by": unit, "name": names, **numbers})
