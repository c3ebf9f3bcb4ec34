"""Which genes are expressed differently in two groups of cells?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from vivace.cells import Cells, child_seeds, question
from vivace.core import Core
from vivace.data.schema import UNS_KEY, Codes
from vivace.de.compare import over_cells
from vivace.de.counts import CountSums, count_sums
from vivace.de.groups import Comparison, Plan, plan, samples_of
from vivace.de.options import Mode, Options, TestMode, change_function, levels
from vivace.de.result import table, to_scanpy
from vivace.de.samples import over_samples
from vivace.de.sampling import Found, Sampling
from vivace.errors import ArgumentTypeError, OptionError, warn
from vivace.questions.importance import check_weighting
from vivace.types import F64, Bool, Indices, Transform
from vivace.validate import Choice


@question(weights=Choice(("uniform", "importance"), optional=True))
def differential_expression(
    self: Core,
    adata: AnnData | None = None,
    groupby: str | None = None,
    group1: str | Sequence[str] | None = None,
    group2: str | None = None,
    idx1: Indices | str | None = None,
    idx2: Indices | str | None = None,
    mode: Mode = "change",
    delta: float | None = 0.25,
    batch_size: int | None = None,
    all_stats: bool = True,
    batch_correction: bool | str | Sequence[str] = False,
    batchid1: Transform = None,
    batchid2: Transform = None,
    fdr_target: float = 0.05,
    silent: bool = False,
    weights: Literal["uniform", "importance"] | None = "uniform",
    filter_outlier_cells: bool = False,
    importance_weighting_kwargs: Mapping[str, Any] | None = None,
    *,
    sample_key: str | None = None,
    key_added: str | None = None,
    seed: int | None = None,
    n_samples_overall: int | None = None,
    use_permutation: bool = False,
    m_permutation: int = 10_000,
    change_fn: Any = None,
    m1_domain_fn: Any = None,
    pseudocounts: float | None = None,
    threshold_counts: float = 0.01,
    test_mode: TestMode = "three",
    cred_interval_lvls: Sequence[float] | float | None = None,
) -> pd.DataFrame:
    """Which genes are expressed differently in two groups of cells, and how sure that is.

    Draws from the posterior of a cell of one group and of a cell of the other give the
    distribution of the log2 fold change of every gene.  A gene is called where it is
    probable enough that the change is at least ``delta``, so that among all called genes
    the share of wrong ones is expected to be at most ``fdr_target``.

    Parameters
    ----------
    adata, batch_size, silent
        As in :meth:`get_latent_representation`.
    groupby
        Column of obs with the groups.
    group1
        A group of it, or several, each compared in turn; None for all of them.
    group2
        What they are compared with; None for all other cells.
    idx1, idx2
        Instead of groups: a mask, row numbers, or a query of obs such as
        ``"cell_type == 'B cells' and donor == 'd1'"``; ``idx2`` None for all other cells.
    mode
        "change", or "vanilla", which asks for the probability that a gene is higher, without
        a threshold or FDR (Lopez et al. 2018).
    delta
        Least log2 fold change that counts; None finds one in the fold changes of all genes.
    all_stats
        With columns of the counts themselves.
    batch_correction
        Compare cells as if they were of the same batch.  The name of a categorical covariate,
        or a list of them and of the batch's column, does it for those.
    batchid1, batchid2
        Categories that each side is decoded as, as ``transform_batch`` takes them, instead
        of all of them; both sides as the same, or as different ones to compare batches.
    fdr_target
        Expected share of wrong calls among the called.
    weights
        "uniform", or "importance" for draws weighted by how well they stand for the group
        (Boyeau et al. 2023).
    filter_outlier_cells
        Leave out cells whose place in the latent space is far from their group's.
    importance_weighting_kwargs
        Arguments of :meth:`get_importance_weights`.
    sample_key
        Column of obs with the sample (donor, mouse) of each cell.  What is tested is then
        the mean effect over samples, against how much samples vary: one sample cannot
        make a gene significant.  ``docs/differential_expression.md`` says how.
    key_added
        Write the result to ``adata.uns[key_added]`` too, where scanpy's
        ``rank_genes_groups`` functions find it.
    seed
        Of the draws; None takes the model's next.
    n_samples_overall
        Draws of each group; None for 5,000, or where more than two groups share them 12,000
        in all, but at least 1,000 of each.
    use_permutation, m_permutation
        All pairs of draws are compared.  Only intervals, ``change_fn`` and ``m1_domain_fn``
        see a part of them: ``m_permutation``, or else 5,000, or one for each draw.
    change_fn
        ``f(scale1, scale2, pseudocounts)``, arrays pairs x genes, instead of the log2 fold
        change.
    m1_domain_fn
        ``f(effects)`` that gives the pairs with a relevant effect upwards and those
        downwards, two boolean arrays, or one for both.
    pseudocounts
        Added to the expression before its logarithm; None finds it, so that genes with fewer
        than ``threshold_counts`` counts a cell hardly change.
    threshold_counts
        Mean counts below which a gene is as good as not expressed.
    test_mode
        "three": the probability that a gene changes upwards, or downwards, whichever is
        larger.  "two": that it changes in either direction.
    cred_interval_lvls
        Levels, such as 0.95, of credible intervals of the effect.

    Returns
    -------
    Frame with a row for each gene and comparison, the surest first; scvi-tools' columns,
    described in ``docs/differential_expression.md``.  ``attrs`` holds how it was made: cells,
    samples and draws a side, delta, pseudocount, expected FDR, seed.

    Raises
    ------
    DataError
        If a group is empty, or groups overlap; the message names near ones.
    OptionError, ArgumentTypeError
        If arguments are out of range or contradict each other.

    Notes
    -----
    A gene without a count in either group is never called.  Sources: Boyeau et al. 2019,
    doi:10.1101/794289, and 2023, doi:10.1073/pnas.2209124120.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata, n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> found = model.differential_expression(
    ...     groupby="cell_type", group1="B cells", group2="NK cells", seed=0
    ... )
    >>> bool(found.loc["CD79A", "lfc_mean"] > 0)
    True
    """
    options = Options(
        mode=mode,
        delta=delta,
        test_mode=test_mode,
        fdr_target=_plain(fdr_target),
        pseudocounts=pseudocounts,
        threshold_counts=threshold_counts,
        n_samples_overall=n_samples_overall,
        use_permutation=use_permutation,
        m_permutation=m_permutation,
        change_fn=change_function(change_fn),
        m1_domain_fn=m1_domain_fn,
        cred_interval_lvls=levels(cred_interval_lvls),
    )
    weighting = check_weighting("differential_expression", importance_weighting_kwargs or {})
    if importance_weighting_kwargs and weights != "importance":
        raise OptionError(
            "importance_weighting_kwargs is about importance weights; give weights='importance' "
            "too, or leave it out."
        )
    if sample_key is not None and (
        mode != "change" or options.change_fn is not None or m1_domain_fn is not None
    ):
        raise OptionError(
            "sample_key tests mean log2 fold changes over samples; it goes with mode='change' and "
            "without change_fn and m1_domain_fn."
        )
    if key_added is not None and not isinstance(key_added, str):
        raise ArgumentTypeError(f"key_added must be a name, not {key_added!r}.")
    if key_added in ("", UNS_KEY):
        raise OptionError(f"key_added={key_added!r} is taken or empty; choose another name.")
    counts = weights == "importance" or sample_key is not None
    cells = self._cells(adata, None, batch_size, silent, counts=counts)
    data = self._asked_adata(adata)
    planned = plan(data, groupby, group1, group2, idx1, idx2)
    codes = _side_codes(self, batch_correction, batchid1, batchid2)
    _warn_of_confounding(self, data, planned, batch_correction)
    sampling = Sampling(
        codes, weighting if weights == "importance" else None, bool(filter_outlier_cells)
    )
    samples = None
    if sample_key is not None:
        used = planned.rows(range(len(planned.parts)))
        names = samples_of(data, sample_key, used)
        samples = np.full(data.n_obs, "", dtype=names.dtype)
        samples[used] = names
    result = compare_groups(
        cells,
        self.schema.genes,
        planned,
        options,
        sampling,
        self._seeds.take(seed),
        samples,
        bool(all_stats),
    )
    result.attrs["batch_correction"] = batch_correction
    if sample_key is not None:
        result.attrs["sample_key"] = sample_key
    if key_added is not None:
        data.uns[key_added] = to_scanpy(result, groupby)
    return result


def _side_codes(
    self: Core, batch_correction: object, batchid1: Transform, batchid2: Transform
) -> tuple[tuple[Codes, ...], tuple[Codes, ...]]:
    """What the draws of the two sides are decoded as."""
    own: tuple[Codes, ...] = (Codes(),)
    if batch_correction is False:
        for name, value in (("batchid1", batchid1), ("batchid2", batchid2)):
            if value is not None:
                raise OptionError(
                    f"{name} says what cells are decoded as; give batch_correction=True too."
                )
        return own, own
    columns = _corrected_columns(self, batch_correction)
    covariates = self.schema.declarations.categorical_covariate_keys
    known = dict(zip(covariates, self.schema.categories, strict=True))
    everything = {key: list(known.get(key, self.schema.batches)) for key in columns}
    batch = self.schema.declarations.batch_key

    def side(given: Transform) -> tuple[Codes, ...]:
        if given is None:
            return self.schema.codes(everything)
        if isinstance(given, Mapping):
            return self.schema.codes(everything | dict(given))
        return self.schema.codes(given if batch is None else everything | {batch: given})

    sides = side(batchid1), side(batchid2)
    both = set(sides[0]) & set(sides[1])
    if both and set(sides[0]) != set(sides[1]):
        raise OptionError(
            "batchid1 and batchid2 share some categories and differ in others; make them equal, to "
            "compare groups, or give them none in common, to compare batches."
        )
    first, second = sides
    return (first, first) if both else (first, second)


def _corrected_columns(self: Core, batch_correction: object) -> list[str]:
    """The columns whose effect is taken out."""
    d = self.schema.declarations
    if batch_correction is True:
        if d.batch_key is None:
            raise OptionError(
                "The model has no batch to correct for; declare a batch_key with setup_anndata, or "
                "name a categorical covariate as batch_correction=."
            )
        return [d.batch_key]
    named = [batch_correction] if isinstance(batch_correction, str) else batch_correction
    if not isinstance(named, Sequence) or not all(isinstance(n, str) for n in named) or not named:
        raise ArgumentTypeError(
            "batch_correction must be True or False, or name the columns to correct for, not "
            f"{batch_correction!r}."
        )
    return list(dict.fromkeys(named))


def _warn_of_confounding(self: Core, data: AnnData, plan: Plan, batch_correction: object) -> None:
    """Where no category of a corrected column has cells of both sides, say what that means."""
    if batch_correction is False:
        return
    for key in _corrected_columns(self, batch_correction):
        if key not in data.obs:
            continue
        column = data.obs[key].astype(str).to_numpy()
        for comparison in plan.comparisons:
            one = set(column[plan.parts[comparison.first]])
            other = set(column[plan.rows(comparison.second)])
            if not one & other:
                warn(
                    f"{comparison.name}: no category of {key!r} has cells of both, so that what "
                    "the groups differ in and what the batches differ in cannot be told apart; "
                    "the correction rests on what the model learned from other cells."
                )


def _plain(value: Any) -> Any:
    """A NumPy number as Python's, in as few digits as tell it apart: it becomes a column's name."""
    return float(str(value)) if isinstance(value, np.floating) else value


def compare_groups(
    cells: Cells,
    genes: Sequence[str],
    plan: Plan,
    options: Options,
    sampling: Sampling,
    seed: int,
    samples: NDArray[np.str_] | None = None,
    all_stats: bool = True,
) -> pd.DataFrame:
    """The table of all comparisons of a plan.

    Parameters
    ----------
    cells
        All that the plan's row numbers count.
    genes
        Names.
    plan
        What is compared.
    options, sampling
        How.
    seed
        Of the draws.
    samples
        The sample of each of the cells, for a comparison across samples.
    all_stats
        With columns of what was counted.
    """
    from vivace.progress import CompilingNotice  # Numba: only those who ask wait

    of_draws, of_pairs, of_delta = child_seeds(seed, 3)
    results: Sequence[Found | None]
    with CompilingNotice(not cells.silent):
        sums = count_sums(cells, plan.parts) if cells.source.has_counts else None
        if samples is None:
            results = over_cells(
                cells, plan, options, sampling, sums, (of_draws, of_pairs, of_delta)
            )
        else:
            assert sums is not None  # the method asks for cells with counts
            results = over_samples(
                cells, plan, options, sampling, sums, samples, (of_draws, of_delta)
            )
    frames, done = [], []
    for comparison, found in zip(plan.comparisons, results, strict=True):
        if found is None:
            continue
        counted, possible = _counted(sums, comparison, len(genes))
        frame = table(
            genes,
            found.change,
            found.scale,
            counted if all_stats else None,
            possible,
            found.pseudocount,
            found.delta,
            options,
        )
        frame["comparison"] = comparison.name
        frame["group1"] = comparison.group1
        frame["group2"] = comparison.group2
        frames.append(frame)
        done.append((comparison, found, frame.attrs.pop("expected_fdr", None)))
    result = pd.concat(frames)
    result.attrs.update(_about(plan, options, sampling, done, frames, seed))
    return result


def _counted(
    sums: CountSums | None, comparison: Comparison, n_genes: int
) -> tuple[dict[str, F64] | None, Bool]:
    """Columns of what was counted, and which genes were counted on one of the sides."""
    if sums is None:
        return None, np.ones(n_genes, bool)
    one, other = sums.of([comparison.first]), sums.of(comparison.second)
    names = ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    columns = {
        f"{name}{side}": values[i]
        for i, name in enumerate(names)
        for side, values in ((1, one), (2, other))
    }
    return columns, (one[1] > 0) | (other[1] > 0)


def _about(
    plan: Plan,
    options: Options,
    sampling: Sampling,
    done: Sequence[tuple[Comparison, Found, float | None]],
    frames: Sequence[pd.DataFrame],
    seed: int,
) -> dict[str, Any]:
    """What the result says of itself; numbers and words only, so that it can be written."""
    comparisons = {}
    for (comparison, found, expected_fdr), frame in zip(done, frames, strict=True):
        about: dict[str, Any] = {
            "n_cells": list(found.n_cells),
            "n_draws": list(found.n_draws),
        }
        if options.mode == "change":
            about |= {
                "delta": found.delta,
                "pseudocounts": found.pseudocount,
                "expected_fdr": expected_fdr,
                "n_called": int(frame[f"is_de_fdr_{options.fdr_target}"].sum()),
            }
        if found.n_samples is not None:
            about |= {"design": found.design, "n_samples": list(found.n_samples)}
        comparisons[comparison.name] = about
    return {
        "mode": options.mode,
        "test_mode": options.test_mode,
        "fdr_target": options.fdr_target,
        "filter_outlier_cells": sampling.filter_outliers,
        "weights": "uniform" if sampling.weighting is None else "importance",
        "groupby": plan.groupby,
        "seed": seed,
        "comparisons": comparisons,
    }
