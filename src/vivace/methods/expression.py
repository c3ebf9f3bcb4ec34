"""What is expressed: rates, counterfactuals, samples, checks, and the genes behind the latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from vivace import posterior, store
from vivace.cells import Cells
from vivace.errors import MissingExtraError, OptionError, ShapeError
from vivace.methods.latent import Embedding, weighting_of
from vivace.types import F32, F64, I64, Indices, Transform
from vivace.validate import number, numbers, positive, whole

Directions = Mapping[str, Any] | NDArray[Any] | Sequence[Any] | None

_APART = 1e-6  # a standard deviation of z below it is that of rounding


class Expressing(Embedding):
    """A trained model that is asked about expression."""

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        transform_batch: Transform = None,
        gene_list: Sequence[str] | None = None,
        library_size: posterior.Library = 1,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        weights: Literal["uniform", "importance"] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = False,
        *,
        out: Any = None,
        seed: int | None = None,
        **importance_weighting_kwargs: Any,
    ) -> Any:
        """Expected expression, free of the noise of counting and of depth: rho of the model.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        transform_batch
            Decode cells as if they were of this category of the batch; of several, the
            mean over them.  For other categorical covariates a mapping from columns:
            ``{"donor": ["d1", "d2"], "condition": "control"}``, mean over combinations.
            None leaves each cell its own.
        gene_list
            Genes, in this order; None for all.
        library_size
            What the expression adds up to over all genes: a number, "observed" for the
            molecules of the cell, or "latent" for what scales the mean of its counts
            (the observed or latent library, or the size factor).  With a size factor
            rho is not a share, so that it is multiplied by this and adds up to nothing
            in particular, as in scvi-tools.
        n_samples
            Draws of z a cell.  1 decodes the mean of q(z|x) (one draw with
            ``return_mean=False``).
        n_samples_overall
            Rows in all, each of a cell drawn with replacement and of one draw of its z;
            ``n_samples`` must then be 1.
        weights
            How those are drawn: "uniform", or "importance" for draws that stand for all
            cells (:meth:`get_importance_weights`, whose arguments are taken too).
        return_mean
            The mean over draws; False gives each of several, shape (draws, n, g).
        return_numpy
            An array, not a frame; None for a frame where the result has two dimensions.
        out
            A path, where a zarr array is written block by block, or an array to fill, in
            memory or on disk; that array is returned, and memory does not grow with cells.
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        Frame of cells x genes, or array, float32, shape (n, g), (draws, n, g) or
        (n_samples_overall, g).

        Raises
        ------
        DataError
            If there is no such category or gene; the message names near ones.
        OptionError, ArgumentTypeError, ShapeError
            If arguments are out of range or contradict each other.

        Notes
        -----
        Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.

        Examples
        --------
        >>> import vivace
        >>> adata = vivace.datasets.pbmc3k()[:200].copy()
        >>> vivace.SCVI.setup_anndata(adata)
        >>> model = vivace.SCVI(adata, n_latent=5)
        >>> model.train(max_epochs=2, progress=False)
        >>> model.get_normalized_expression(gene_list=["MS4A1", "LYZ"], library_size=1e4).shape
        (200, 2)
        """
        weighting = weighting_of("get_normalized_expression", importance_weighting_kwargs)
        whole("n_samples", n_samples)
        positive("n_samples_overall", n_samples_overall)
        _check_library(library_size)
        check_weights(weights, n_samples, n_samples_overall)
        if importance_weighting_kwargs and weights != "importance":
            raise OptionError(
                f"{next(iter(importance_weighting_kwargs))} is about importance weights; give "
                "weights='importance' too, or leave it out."
            )
        codes = self.schema.codes(transform_batch)
        genes = self.schema.genes_at(gene_list)
        cells = self._cells(adata, indices, batch_size, silent, counts=weights == "importance")
        certain = n_samples == 1 and return_mean and n_samples_overall is None
        start = self._seed(seed, drawn=not certain)
        n_genes = len(self.schema.genes) if genes is None else len(genes)
        each = n_samples > 1 and not return_mean
        if each and return_numpy is False:
            raise OptionError(
                "A frame has two dimensions, so that return_numpy=False does not go with several "
                "draws (n_samples) that are kept (return_mean=False); leave one of them out."
            )
        asked = (codes, genes, library_size)
        if n_samples_overall is None:
            n_draws = 0 if certain else n_samples
            shape = (n_samples, len(cells), n_genes) if each else (len(cells), n_genes)

            def write(array: Any) -> None:
                posterior.expression(cells, *asked, n_draws, start, array, keep_draws=each)

        else:
            shape = (n_samples_overall, n_genes)
            weighted = weighting if weights == "importance" else None

            def write(array: Any) -> None:
                nonlocal cells
                rows, z, size = posterior.group_draws(cells, n_samples_overall, start, weighted)
                cells = cells.at(rows)
                posterior.expression_at(cells, *asked, z, size, array)

        found = store.fill_dense(out, shape, cells.batch_size, write)
        if out is not None or each or return_numpy:
            return found
        return self._frame(found, adata, cells, genes)

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        transform_batch: Transform = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        silent: bool = False,
        *,
        out: str | Path | None = None,
        seed: int | None = None,
    ) -> Any:
        """Counts as the model would observe them, were the cells sequenced again.

        z (and a latent library) is drawn from q(.|x), then counts from the likelihood.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        transform_batch
            As in :meth:`get_normalized_expression`; of several categories each cell takes
            one at random in each draw, so that counts are whole numbers.
        n_samples
            Draws a cell.
        gene_list
            Genes, in this order; None for all.  A gene's draws do not depend on the others.
        out
            A path, where AnnData's form of a sparse matrix is written as zarr, block by
            block; with several draws one in each of the groups "0", "1" and so on.
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        CSR matrix, int32, shape (n, g).  With several draws a ``sparse.GCXS`` array of shape
        (n, g, draws), for which the package ``sparse`` is needed.  With ``out``, AnnData's
        sparse dataset, or a list of them, open for reading.  For the normal likelihood a
        dense array, float32, shape (n, g) or (n, g, draws).

        Raises
        ------
        DataError
            If there is no such category or gene; the message names near ones.
        MissingExtraError
            If a package is missing that the result needs.
        """
        whole("n_samples", n_samples)
        codes = self.schema.codes(transform_batch)
        genes = self.schema.genes_at(gene_list)
        cells = self._cells(adata, indices, batch_size, silent)
        drawn = posterior.samples(cells, codes, n_samples, self._seeds.take(seed))
        n_genes = len(self.schema.genes) if genes is None else len(genes)
        if self.config.gene_likelihood == "normal":
            shape = (len(cells), n_genes) if n_samples == 1 else (len(cells), n_genes, n_samples)

            def write(array: Any) -> None:
                for part, i, _, x in drawn:
                    values = x.numpy() if genes is None else x[:, genes].numpy()
                    array[part if n_samples == 1 else (part, slice(None), i)] = values

            return store.fill_dense(out, shape, cells.batch_size, write, cells_axis=0)
        blocks = ((i, posterior.sparse_counts(x, genes)) for _, i, _, x in drawn)
        if out is not None:
            return store.fill_sparse(out, n_genes, n_samples, blocks)
        if n_samples > 1:
            _need_sparse()
        rows: list[list[sp.csr_matrix]] = [[] for _ in range(n_samples)]
        for i, block in blocks:
            rows[i].append(block)
        empty = sp.csr_matrix((0, n_genes), dtype=np.int32)
        matrices = [sp.vstack([empty, *r], format="csr") for r in rows]
        return matrices[0] if n_samples == 1 else _stacked(matrices)

    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> dict[str, F32]:
        """Parameters of the likelihood of each cell and gene.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        n_samples
            Draws of z a cell.
        give_mean
            The mean over the draws; of one, the parameters at the mean of q(z|x).
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        Dict of arrays, float32, shape (n, g), or (draws, n, g) for several draws without
        ``give_mean``: "mean", molecules; "dispersions" (theta; the standard deviation of
        "normal"; not for "poisson"); "dropout", probabilities, for "zinb".
        """
        whole("n_samples", n_samples)
        cells = self._cells(adata, indices, batch_size, silent)
        n_draws = 0 if n_samples == 1 and give_mean else n_samples
        start = self._seed(seed, drawn=n_draws > 0)
        return posterior.likelihood_parameters(cells, n_draws, give_mean, start)

    def get_feature_correlation_matrix(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        rna_size_factor: float = 1000,
        transform_batch: Transform = None,
        correlation_type: posterior.Correlation = "spearman",
        silent: bool = False,
        *,
        gene_list: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Correlation of genes over denoised draws: without the noise of counting and of depth.

        Each draw is of z and of the gamma distributed rate of the counts (the rate itself
        where the likelihood has no gamma).

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        n_samples
            Draws a cell.
        rna_size_factor
            Molecules of the cell whose rates are drawn.
        transform_batch
            As in :meth:`get_normalized_expression`; of several, the mean of their matrices.
        correlation_type
            "spearman" or "pearson".  Ranks are exact for up to 2**26 numbers (cells x draws
            x genes), and taken among an even choice of that many beyond.
        gene_list
            Genes, in this order; None for all.
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        Frame, genes x genes.  NaN for a gene that is the same in every draw.
        """
        whole("n_samples", n_samples)
        _size("rna_size_factor", rna_size_factor)
        _one_of("correlation_type", correlation_type, get_args(posterior.Correlation))
        codes = self.schema.codes(transform_batch)
        genes = self.schema.genes_at(gene_list)
        cells = self._cells(adata, indices, batch_size, silent)
        if len(cells) < 2:
            raise OptionError(f"A correlation needs two cells, but indices names {len(cells)}.")
        start = self._seeds.take(seed)
        found = np.mean(
            [
                posterior.feature_correlation(
                    cells, c, genes, n_samples, rna_size_factor, correlation_type, start
                )
                for c in codes
            ],
            axis=0,
        )
        names = self._gene_names(genes)
        return pd.DataFrame(found, index=names, columns=names)

    def posterior_predictive_check(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        n_samples: int = 20,
        *,
        n_correlated: int = 50,
        batch_size: int | None = None,
        seed: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Is the model adequate for these data?  Statistics of the data beside those of draws.

        Mean, variance and fraction of zeros, by gene (over cells) and by cell (over genes),
        and the correlation of pairs of genes, of the data and of posterior predictive
        samples.  :func:`vivace.report.draw_check` draws the frame, of one model or of
        several; :func:`vivace.report.summarise_check` says in a few rows how well it fits.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`; cells that were not trained on
            (:attr:`validation_indices`) make the harder test.
        n_samples
            Draws of every cell.
        n_correlated
            Genes whose pairs are correlated, those that vary most, on log(1 + x).
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        Frame with one row for each statistic and gene, cell or pair: ``statistic`` ("mean",
        "variance", "zero_fraction", "correlation"), ``by`` ("gene", "cell", "gene pair"),
        ``name``, ``observed``, ``predicted`` (mean over draws), ``lower`` and ``upper`` (95 %
        of the draws lie between), ``p_value`` (share of draws above the observed, ties by
        half).

        Notes
        -----
        Source: Gelman, Meng and Stern 1996, Statistica Sinica 6, 733.
        """
        whole("n_samples", n_samples)
        whole("n_correlated", n_correlated)
        cells = self._cells(adata, indices, batch_size, silent, counts=True)
        if len(cells) == 0:
            raise OptionError("indices names no cells; a check needs some.")
        names = self._data_of(adata).obs_names[cells.rows]
        return posterior.posterior_predictive_check(
            cells, self.schema.genes, list(names), n_samples, n_correlated, self._seeds.take(seed)
        )

    def get_gene_programs(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        directions: Directions = None,
        transform_batch: Transform = None,
        batch_size: int | None = None,
        *,
        silent: bool = False,
    ) -> posterior.GenePrograms:
        """Which genes change along a direction of the latent space, and by how much.

        The derivative of each gene's log expected expression along the direction at each
        cell's mean of q(z|x), exact, times the length of the move; mean over cells, and
        standard deviation over cells.  Where the latent is logistic-normal, moves are made
        before the softmax.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        directions
            None for each latent dimension by itself, a move of one standard deviation of
            the cells along it ("Z_0", "Z_1", ...).  Or moves of your own, such as the
            difference of two groups' means: a mapping from names to vectors, shape (k,),
            or an array, shape (k,) or (d, k).
        transform_batch
            As in :meth:`get_normalized_expression`.

        Returns
        -------
        :class:`~vivace.posterior.GenePrograms`: frames ``effect`` and ``spread``, genes x
        directions, in nats, and ``top(n)``, the genes that rise and fall most.

        Notes
        -----
        For :class:`~vivace.LinearSCVI` the effect of a move of length one is the loading,
        less a number that all genes share (the softmax over genes).

        Examples
        --------
        >>> import vivace
        >>> adata = vivace.datasets.pbmc3k()[:200].copy()
        >>> vivace.SCVI.setup_anndata(adata)
        >>> model = vivace.SCVI(adata, n_latent=5)
        >>> model.train(max_epochs=2, progress=False)
        >>> programs = model.get_gene_programs()
        >>> programs.effect.shape, programs.top(10).shape
        ((2005, 5), (100, 5))
        """
        codes = self.schema.codes(transform_batch)
        cells = self._cells(adata, indices, batch_size, silent)
        if len(cells) == 0:
            raise OptionError("indices names no cells; gene programs are a mean over some.")
        if directions is None:
            names = [f"Z_{i}" for i in range(self.config.n_latent)]
            moves = posterior.standard_moves(cells)
            if moves.max() < _APART:
                raise OptionError(
                    "The cells lie in one place, so that there is no standard deviation to move by; "
                    "give more cells, or directions of your own."
                )
        else:
            names, moves = _moves(directions, self.config.n_latent)
        mean, spread = posterior.gene_effects(cells, codes, moves)
        genes = self._gene_names(None)
        return posterior.GenePrograms(
            pd.DataFrame(mean, index=genes, columns=names),
            pd.DataFrame(spread, index=genes, columns=names),
        )

    def decode(
        self,
        z: NDArray[Any] | Tensor,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        transform_batch: Transform = None,
        library_size: float | NDArray[Any] | Tensor | None = None,
    ) -> posterior.Observation:
        """The distribution of observations at points of the latent space.

        Parameters
        ----------
        z
            Points, shape (n, k); of the simplex for a logistic-normal latent.
        adata, indices
            The n cells whose covariates are used, as in
            :meth:`get_latent_representation`.
        transform_batch
            A category of the batch in place of the cells' own, or a mapping from columns
            to one category each, as in :meth:`get_normalized_expression`.
        library_size
            Molecules, one number or one a cell; None for the observed library, the
            size factor, or the exponential of the mean of q(l|x).

        Returns
        -------
        A distribution of :mod:`vivace.distributions`, n x g, with ``log_prob``,
        ``sample``, ``mu`` (or ``rate``), ``scale``, and ``theta`` and ``zi_logits``
        where the likelihood has them.  Dense: n x g numbers of each.

        Raises
        ------
        ShapeError
            If ``z`` is not of shape (n, k), or ``library_size`` not of length n.
        DataError
            If ``transform_batch`` is no category of the batch.
        """
        cells = self._cells(adata, indices, None)
        point_nk = numbers("z", z)
        if tuple(point_nk.shape) != (len(cells), self.config.n_latent):
            raise ShapeError(
                f"z has shape {tuple(point_nk.shape)}, but {len(cells)} cells and "
                f"{self.config.n_latent} latent dimensions need ({len(cells)}, "
                f"{self.config.n_latent}); choose the cells with indices."
            )
        library_n = None
        if library_size is not None:
            library_n = numbers("library_size", library_size)
            if library_n.ndim > 1 or len(library_n.reshape(-1)) not in (1, len(cells)):
                raise ShapeError(
                    f"library_size has shape {tuple(library_n.shape)}; give one number, or one "
                    f"for each of the {len(cells)} cells."
                )
            if not (library_n > 0).all():
                raise OptionError("library_size must be above 0; leave it None for the observed.")
            library_n = library_n.expand(len(cells))
        codes = self.schema.codes(transform_batch)
        if len(codes) > 1:
            raise OptionError(
                f"transform_batch names {len(codes)} combinations, but decode gives one distribution "
                "a cell; call it for each."
            )
        return posterior.decode(cells, point_nk, codes[0], library_n)

    def _gene_names(self, genes: I64 | None) -> pd.Index[str]:
        names = pd.Index(self.schema.genes)
        return names if genes is None else names[genes]

    def _frame(
        self,
        values: F32,
        adata: AnnData | None,
        cells: Cells,
        genes: I64 | None,
    ) -> pd.DataFrame:
        """Cells x genes with the names of both."""
        names = self._data_of(adata).obs_names[cells.rows]
        return pd.DataFrame(values, index=names, columns=self._gene_names(genes), copy=False)


def _check_library(library_size: object) -> None:
    if isinstance(library_size, str):
        _one_of("library_size", library_size, ("latent", "observed"), "a number")
    else:
        _size("library_size", library_size)


def _size(name: str, value: Any) -> None:
    """``value`` must be a number above 0, and finite."""
    number(name, value)
    if value is None or not 0 < value <= float(np.finfo(np.float32).max):
        raise OptionError(f"{name} must be above 0 and finite, not {value}.")


def check_weights(weights: object, n_samples: int, n_samples_overall: int | None) -> None:
    """How draws of a group are drawn must be a known word, and go with their number."""
    if weights is not None:
        _one_of("weights", weights, ("uniform", "importance"))
    if n_samples_overall is None:
        if weights == "importance":
            raise OptionError(
                "weights='importance' says how the draws of a whole group are drawn; give their "
                "number as n_samples_overall, or leave weights out."
            )
    elif n_samples != 1:
        raise OptionError(
            f"n_samples_overall ({n_samples_overall}) is the number of rows in all, each of one draw; "
            f"leave n_samples at 1, not {n_samples}."
        )


def _one_of(name: str, value: object, known: Sequence[str], other: str = "") -> None:
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(map(repr, known))
        raise OptionError(
            f"{name} must be {other}{' or ' if other else ''}one of {listed}, not {value!r}."
        )


def _moves(directions: Any, n_latent: int) -> tuple[list[str], F64]:
    """Names and vectors, shape (d, k), of the moves that were given."""
    if isinstance(directions, Mapping):
        names, given = [str(n) for n in directions], list(directions.values())
        if len(set(names)) < len(names):
            raise OptionError("directions holds two names that read the same; rename one.")
        moves = numbers("directions", given if given else np.empty((0, n_latent)))
    else:
        moves = numbers("directions", directions)
        moves = moves[None] if moves.ndim == 1 else moves
        names = [f"direction_{i}" for i in range(len(moves))]
    if moves.ndim != 2 or moves.shape[1] != n_latent or len(moves) == 0:
        raise ShapeError(
            f"directions has shape {tuple(moves.shape)}, but moves in {n_latent} latent dimensions "
            f"have (d, {n_latent})."
        )
    return names, moves.double().numpy()


def _need_sparse() -> None:
    if find_spec("sparse") is None:
        raise MissingExtraError(
            "Several draws need the package sparse, which is not installed; run pip install "
            "'vivace[samples]', or give out= a path."
        )


def _stacked(matrices: list[sp.csr_matrix]) -> Any:
    """One array of shape (n, g, draws) from a matrix for each draw."""
    import sparse

    parts = [m.tocoo() for m in matrices]
    draw = np.repeat(np.arange(len(parts)), [p.nnz for p in parts])
    place = np.stack(
        [np.concatenate([p.row for p in parts]), np.concatenate([p.col for p in parts]), draw]
    )
    values = np.concatenate([p.data for p in parts])
    return sparse.GCXS.from_coo(sparse.COO(place, values, (*matrices[0].shape, len(parts))))
