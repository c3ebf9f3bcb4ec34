"""Which genes are expressed differently in two groups of cells?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from vivace.cells import child_seeds, question
from vivace.core import Core
from vivace.data.schema import UNS_KEY, Codes
from vivace.de.options import CHECKS, Mode, Options, Sampling, TestMode, Weights, read_levels
from vivace.de.plan import Comparison, Plan, plan_comparisons, read_replicates
from vivace.de.result_table import ComparisonResult, make_table, to_scanpy
from vivace.errors import ArgumentTypeError, OptionError, brief, one_line, warn
from vivace.questions.importance import check_weighting
from vivace.types import F64, Bool, Indices, Transform

if TYPE_CHECKING:
    from vivace.de.counts import CountSums


@question(**CHECKS)
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
    weights: Weights | None = "uniform",
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
    """Find the genes that are expressed differently in two groups of cells.

    Random samples from the posterior of the cells of both groups give the distribution of the
    log2 fold change of every gene. A gene is called if the probability of a change of at least
    ``delta`` is high enough to keep the expected share of false calls at most ``fdr_target``.

    Parameters
    ----------
    adata, batch_size, silent
        As in :meth:`get_latent_representation`.
    groupby
        Column of obs with the groups.
    group1
        One of its groups, or several, each compared in turn; None for all of them.
    group2
        The group to compare with; None for all other cells.
    idx1, idx2
        Instead of groups: a mask, row numbers (as ``indices`` of
        :meth:`get_latent_representation`), or a query of obs such as
        ``"cell_type == 'B cells' and donor == 'd1'"``, which a missing value does not match;
        ``idx2`` None for all other cells.
    mode
        "change", or "vanilla" for the probability that a gene is higher, without a threshold or
        an FDR (Lopez et al. 2018).
    delta
        Smallest log2 fold change that counts; None chooses one from the fold changes of all genes.
    all_stats
        Include columns computed from the counts.
    batch_correction
        Compare cells as if they were of the same batch. The name of a categorical covariate, or
        a list of columns that may include the batch, corrects for those instead.
    batchid1, batchid2
        Categories that each side is decoded as, in the form of ``transform_batch``; None for all.
        Give both sides the same ones, or disjoint ones to compare batches.
    fdr_target
        Expected share of false calls among the called genes.
    weights
        "uniform", or "importance" for samples that are weighted by how well they represent the
        group (Boyeau et al. 2023).
    filter_outlier_cells
        Leave out cells that are far from their group in the latent space.
    importance_weighting_kwargs
        Arguments of :meth:`get_importance_weights`.
    sample_key
        Column of obs with the sample (donor, mouse) of each cell. The test then concerns the
        mean effect over samples, relative to how much samples vary: a single sample cannot make
        a gene significant. ``docs/differential_expression.md`` describes the method.
    key_added
        Also write the result to ``adata.uns[key_added]``, where scanpy's ``rank_genes_groups``
        functions read it.
    seed
        Random seed; None uses the model's next seed.
    n_samples_overall
        Random samples per group. None uses 5,000; if several comparisons share more than two
        groups, 12,000 in total, but at least 1,000 per group.
    use_permutation, m_permutation
        Pairs of samples for intervals, ``change_fn`` and ``m1_domain_fn``: ``m_permutation`` if
        ``use_permutation``, else 5,000 or as many as samples per group. Everything else is
        computed from all pairs.
    change_fn
        ``f(scale1, scale2, pseudocounts)`` of arrays pairs x genes, to use instead of the log2
        fold change.
    m1_domain_fn
        ``f(effects)`` that returns the pairs with a relevant effect upwards and those with one
        downwards, as two boolean arrays, or as one for both.
    pseudocounts
        Added to the expression before its logarithm. None chooses a number with which genes with
        fewer than ``threshold_counts`` counts per cell hardly change.
    threshold_counts
        Mean counts per cell below which a gene is considered not expressed.
    test_mode
        "three" for the larger of the probabilities that a gene changes upwards and downwards,
        "two" for the probability that it changes in either direction.
    cred_interval_lvls
        Levels, such as 0.95, of credible intervals of the effect.

    Returns
    -------
    Frame with one row per gene and comparison, the most probable first. It has scvi-tools'
    columns, which ``docs/differential_expression.md`` describes. ``attrs`` says how it was made:
    cells, biological and random samples per side, delta, pseudocount, expected FDR, seed.

    Raises
    ------
    DataError
        If a group is empty or unknown, or groups overlap; the message names near matches.
    OptionError, ArgumentTypeError
        If arguments are out of range or contradict each other.

    Notes
    -----
    A gene without a count in either group is never called. Sources: Boyeau et al. 2019,
    doi:10.1101/794289, and 2023, doi:10.1073/pnas.2209124120.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata, n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> genes = model.differential_expression(
    ...     groupby="cell_type", group1="B cells", group2="NK cells", seed=0
    ... )
    >>> bool(genes.loc["CD79A", "lfc_mean"] > 0)
    True
    """
    options = Options(
        mode=mode,
        delta=delta,
        test_mode=test_mode,
        fdr_target=fdr_target,
        pseudocounts=pseudocounts,
        threshold_counts=threshold_counts,
        n_samples_overall=n_samples_overall,
        use_permutation=use_permutation,
        m_permutation=m_permutation,
        # "log-fold" is scvi-tools' name for the default
        change_fn=None if isinstance(change_fn, str) and change_fn == "log-fold" else change_fn,
        m1_domain_fn=m1_domain_fn,
        cred_interval_lvls=read_levels(cred_interval_lvls),
    )
    weighting = check_weighting("differential_expression", importance_weighting_kwargs or {})
    weighted = weights == "importance"
    if importance_weighting_kwargs and not weighted:
        raise OptionError(
            "importance_weighting_kwargs needs weights='importance'; give that too, or leave "
            "importance_weighting_kwargs out."
        )
    if sample_key is not None and (mode != "change" or options.has_user_functions):
        raise OptionError(
            "sample_key tests mean log2 fold changes over samples; it needs mode='change', and "
            "neither change_fn nor m1_domain_fn."
        )
    _check_key_added(key_added)

    # Which cells are compared, and as which categories they are decoded.
    needs_counts = weighted or sample_key is not None
    cells = self._cells(adata, None, batch_size, silent, counts=needs_counts)
    data = self._resolve_adata(adata)
    plan = plan_comparisons(data, groupby, group1, group2, idx1, idx2)
    columns = _corrected_columns(self, batch_correction)
    codes = _choose_codes(self, columns, batchid1, batchid2)
    _warn_about_confounding(data, plan, columns)
    sampling = Sampling(codes, weighting if weighted else None, bool(filter_outlier_cells))
    replicates = None
    if sample_key is not None:
        replicates = read_replicates(data, sample_key, plan.rows(range(len(plan.parts))))

    # lazy: importing Numba takes a second
    from vivace.de.counts import sum_counts
    from vivace.de.effects import compare_cells
    from vivace.de.replicates import compare_replicates
    from vivace.progress import CompilingNotice

    seed = self._seeds.take(seed)
    samples_seed, pairs_seed, delta_seed = child_seeds(seed, 3)
    results: Sequence[ComparisonResult | None]
    with CompilingNotice(not cells.silent):
        sums = sum_counts(cells, plan.parts) if cells.source.has_counts else None
        if replicates is None:
            seeds = samples_seed, pairs_seed, delta_seed
            results = compare_cells(cells, plan, options, sampling, sums, seeds)
        else:
            assert sums is not None  # needs_counts
            results = compare_replicates(
                cells, plan, options, sampling, sums, replicates, (samples_seed, delta_seed)
            )

    # One table per comparison, concatenated. Comparisons that were left out have no result.
    genes = self.schema.genes
    tables, comparisons = [], {}
    for comparison, result in zip(plan.comparisons, results, strict=True):
        if result is None:
            continue
        counted, has_counts = _count_columns(sums, comparison, len(genes))
        table = make_table(genes, result, counted if all_stats else None, has_counts, options)
        comparisons[comparison.name] = _describe(result, table, options)
        table["comparison"] = comparison.name
        table["group1"] = comparison.group1
        table["group2"] = comparison.group2
        tables.append(table)
    answer = pd.concat(tables)
    answer.attrs |= {
        "mode": mode,
        "test_mode": test_mode,
        "fdr_target": options.fdr_target,
        "filter_outlier_cells": sampling.filter_outliers,
        "weights": "importance" if weighted else "uniform",
        "groupby": plan.groupby,
        "seed": seed,
        "comparisons": comparisons,
        "batch_correction": batch_correction,
    }
    if sample_key is not None:
        answer.attrs["sample_key"] = sample_key
    if key_added is not None:
        data.uns[key_added] = to_scanpy(answer, groupby)
    return answer


def _check_key_added(key_added: object) -> None:
    if key_added is not None and not isinstance(key_added, str):
        raise ArgumentTypeError(f"key_added must be a name, not {brief(key_added)}.")
    if key_added in ("", UNS_KEY):
        raise OptionError(
            f"key_added={brief(key_added)} is empty or reserved; choose another name."
        )


# ---- the categories that cells are decoded as -------------------------------------------


def _corrected_columns(self: Core, batch_correction: object) -> list[str]:
    """The columns whose effect is removed."""
    if batch_correction is False:
        return []
    if batch_correction is True:
        batch_key = self.schema.declarations.batch_key
        if batch_key is None:
            raise OptionError(
                "The model has no batch to correct for; declare a batch_key with setup_anndata, or "
                "name a categorical covariate as batch_correction=."
            )
        return [batch_key]
    names = [batch_correction] if isinstance(batch_correction, str) else batch_correction
    if isinstance(names, np.ndarray | pd.Index | pd.Series):
        names = names.tolist()
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names) or not names:
        raise ArgumentTypeError(
            "batch_correction must be True or False, or name the columns to correct for, not "
            f"{brief(batch_correction)}."
        )
    return list(dict.fromkeys(names))


def _choose_codes(
    self: Core, columns: Sequence[str], batchid1: Transform, batchid2: Transform
) -> tuple[tuple[Codes, ...], tuple[Codes, ...]]:
    """The categories that the samples of each side are decoded as."""
    if not columns:
        for name, value in (("batchid1", batchid1), ("batchid2", batchid2)):
            if value is not None:
                raise OptionError(f"{name} needs batch_correction=True; give that too.")
        unchanged: tuple[Codes, ...] = (Codes(),)
        return unchanged, unchanged
    declared = self.schema.declarations
    categories = dict(zip(declared.categorical_covariate_keys, self.schema.categories, strict=True))
    # An unknown name is refused by schema.codes.
    everything = {key: list(categories.get(key, self.schema.batches)) for key in columns}
    batch = declared.batch_key

    def choose(batchid: Transform) -> tuple[Codes, ...]:
        if batchid is None:
            return self.schema.codes(everything)
        if isinstance(batchid, Mapping):
            return self.schema.codes(everything | dict(batchid))
        return self.schema.codes(batchid if batch is None else everything | {batch: batchid})

    first, second = choose(batchid1), choose(batchid2)
    if set(first) == set(second):
        return first, first  # in one order, because samples that are decoded alike are compared
    if set(first) & set(second):
        raise OptionError(
            "batchid1 and batchid2 share some categories and differ in others; make them equal to "
            "compare groups, or disjoint to compare batches."
        )
    return first, second


def _warn_about_confounding(data: AnnData, plan: Plan, columns: Sequence[str]) -> None:
    """Warn once of the comparisons where no category of a corrected column has both sides."""
    confounded = []
    for key in columns:
        if key not in data.obs:
            continue
        category = data.obs[key].astype(str).to_numpy()
        of_part = [set(category[rows]) for rows in plan.parts]
        for comparison in plan.comparisons:
            second = set[str]().union(*(of_part[i] for i in comparison.second))
            if of_part[comparison.first].isdisjoint(second):
                confounded.append((comparison.name, key))
    if confounded:
        name, key = confounded[0]
        others = len(confounded) - 1
        more = f" (and {others} more comparisons or columns like it)" if others else ""
        warn(
            f"{one_line(name)}: no category of {brief(key)} has cells of both groups{more}, so "
            "differences between groups cannot be distinguished from differences between "
            "batches; the correction relies on what the model learned from other cells."
        )


# ---- the table --------------------------------------------------------------------------


def _count_columns(
    sums: CountSums | None, comparison: Comparison, n_genes: int
) -> tuple[dict[str, F64] | None, Bool]:
    """Columns about the counts, and which genes have a count on one of the sides."""
    if sums is None:
        return None, np.ones(n_genes, bool)
    first, second = sums.means([comparison.first]), sums.means(comparison.second)
    names = ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    columns = {
        f"{name}{side}": values[i]
        for i, name in enumerate(names)
        for side, values in ((1, first), (2, second))
    }
    return columns, (first[1] > 0) | (second[1] > 0)


def _describe(result: ComparisonResult, table: pd.DataFrame, options: Options) -> dict[str, Any]:
    """How a comparison was made, as numbers and strings, which any file format can hold."""
    facts: dict[str, Any] = {
        "n_cells": list(result.n_cells),
        "n_draws": list(result.n_samples),
    }
    expected_fdr = table.attrs.pop("expected_fdr", None)
    if options.mode == "change":
        facts |= {
            "delta": result.delta,
            "pseudocounts": result.pseudocount,
            "expected_fdr": expected_fdr,
            "n_called": int(table[f"is_de_fdr_{options.fdr_target}"].sum()),
        }
    if result.n_replicates is not None:
        facts |= {"design": result.design, "n_samples": list(result.n_replicates)}
    return facts
