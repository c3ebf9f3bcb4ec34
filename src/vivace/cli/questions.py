"""Questions to a trained model: ``vivace embed``, ``express``, ``sample`` and ``de``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vivace.cli.common import Keys, ModelFolder, Overwrite, Quiet, Threads, read, use_threads
from vivace.errors import OptionError

Counts = Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts of the same genes.")]
Matrix = Annotated[Path, typer.Option("--output", "-o", help=".h5ad or .zarr to write.")]
BatchSize = Annotated[int | None, typer.Option(help="Cells at a time.")]
Seed = Annotated[int | None, typer.Option(help="Of the draws.")]


def embed(
    model: ModelFolder,
    data: Counts,
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad to write.")],
    key_added: Annotated[str, typer.Option(help="Key in obsm.")] = "X_scVI",
    threads: Threads = None,
) -> None:
    """Write IN.h5ad with the latent representation of its cells in obsm."""
    from vivace.model import load
    from vivace.store.folder import write_h5ad

    use_threads(threads)
    loaded = load(model)
    adata = read(data)
    adata.obsm[key_added] = loaded.get_latent_representation(adata)
    write_h5ad(adata, output)
    typer.echo(f"Wrote {output}: {adata.n_obs:,} cells, obsm[{key_added!r}]")


def express(
    model: ModelFolder,
    data: Counts,
    output: Matrix,
    gene: Annotated[Keys, typer.Option(help="Gene to write; may be repeated; all if none.")] = None,
    transform_batch: Annotated[
        Keys, typer.Option(help="Batch to decode as; the mean over several.")
    ] = None,
    transform: Annotated[
        Keys, typer.Option(help="COLUMN=CATEGORY to decode as; may be repeated.")
    ] = None,
    library_size: Annotated[
        str, typer.Option(help="What a cell adds up to: a number, observed or latent.")
    ] = "1",
    n_samples: Annotated[
        int, typer.Option(help="Draws of the latent a cell; 1 takes its mean.")
    ] = 1,
    batch_size: BatchSize = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Write the expected expression of each cell and gene, free of noise and depth."""
    from vivace.core import minibatch_size
    from vivace.model import load
    from vivace.store.arrays import check_free, dense_file

    use_threads(threads)
    check_free(_anndata_path(output), overwrite)
    loaded = load(model)
    adata = read(data)
    loaded.schema.genes_at(gene)  # refused before anything is written
    loaded.schema.gene_positions(adata)
    genes = list(loaded.schema.genes) if gene is None else gene
    var = adata.var.loc[genes]
    chosen = _transform(loaded, transform_batch, transform)
    size = minibatch_size(batch_size, len(loaded.schema.genes))
    with dense_file(output, adata.obs, var, size, overwrite) as x:
        loaded.get_normalized_expression(
            adata,
            transform_batch=chosen,
            gene_list=gene,
            library_size=_library(library_size),
            n_samples=n_samples,
            batch_size=batch_size,
            silent=quiet,
            out=x,
            seed=seed,
        )
    typer.echo(f"Wrote {output}: {adata.n_obs:,} cells x {len(genes):,} genes")


def sample(
    model: ModelFolder,
    data: Counts,
    output: Matrix,
    transform_batch: Annotated[
        Keys, typer.Option(help="Batch to draw for; of several one at random for each cell.")
    ] = None,
    transform: Annotated[
        Keys, typer.Option(help="COLUMN=CATEGORY to draw for; may be repeated.")
    ] = None,
    n_samples: Annotated[
        int, typer.Option(help="Draws a cell; obs['draw'] tells several apart.")
    ] = 1,
    batch_size: BatchSize = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Write counts as the model would observe them, were the cells sequenced again."""
    import numpy as np
    from anndata import AnnData

    from vivace.model import load
    from vivace.store.arrays import check_free, write_anndata
    from vivace.validate import positive

    use_threads(threads)
    positive("n_samples", n_samples)
    check_free(_anndata_path(output), overwrite)
    loaded = load(model)
    adata = read(data)
    rows = np.tile(np.arange(adata.n_obs), n_samples)
    counts = loaded.posterior_predictive_sample(
        adata,
        rows,
        transform_batch=_transform(loaded, transform_batch, transform),
        batch_size=batch_size,
        silent=quiet,
        seed=seed,
    )
    obs = adata.obs.iloc[rows].copy()
    if n_samples > 1:
        obs["draw"] = np.repeat(np.arange(n_samples), adata.n_obs)
        obs.index = obs.index.astype(str) + "-" + obs["draw"].astype(str)
    drawn = AnnData(counts, obs=obs, var=adata.var.loc[list(loaded.schema.genes)])
    write_anndata(drawn, output, overwrite)
    typer.echo(f"Wrote {output}: {drawn.n_obs:,} cells x {drawn.n_vars:,} genes")


def de(
    model: ModelFolder,
    data: Counts,
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to write, .csv or .tsv.")],
    groupby: Annotated[str | None, typer.Option(help="Column of obs with the groups.")] = None,
    group1: Annotated[
        Keys, typer.Option(help="Group to compare; may be repeated; each in turn if none.")
    ] = None,
    group2: Annotated[str | None, typer.Option(help="What with; all other cells if none.")] = None,
    idx1: Annotated[
        str | None, typer.Option(help="Instead of groups, a query of obs: \"donor == 'd1'\".")
    ] = None,
    idx2: Annotated[
        str | None, typer.Option(help="The other side; all other cells if none.")
    ] = None,
    mode: Annotated[str, typer.Option(help="change or vanilla.")] = "change",
    delta: Annotated[float, typer.Option(help="Least log2 fold change that counts.")] = 0.25,
    fdr_target: Annotated[float, typer.Option(help="Expected share of wrong calls.")] = 0.05,
    test_mode: Annotated[str, typer.Option(help="three or two.")] = "three",
    sample_key: Annotated[
        str | None, typer.Option(help="Column with the sample (donor) of each cell.")
    ] = None,
    batch_correction: Annotated[
        bool, typer.Option("--batch-correction", help="Compare cells as if of the same batch.")
    ] = False,
    volcano: Annotated[
        Path | None, typer.Option(help="PNG of the (first) comparison to write too.")
    ] = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Write which genes differ between groups of cells, and how sure that is."""
    from vivace.model import load
    from vivace.store.arrays import check_free
    from vivace.store.table import check_table, write_table

    use_threads(threads)
    check_table(output, overwrite)
    if volcano is not None:
        from vivace.report.overview import need_plotting

        need_plotting()
        if volcano.suffix not in (".png", ".pdf", ".svg"):
            raise OptionError(f"{volcano} must end in .png, .pdf or .svg.")
        if mode == "vanilla":
            raise OptionError("--volcano shows calls, which mode vanilla does not make; drop one.")
        check_free(volcano, overwrite)
        volcano.parent.mkdir(parents=True, exist_ok=True)
    found = load(model).differential_expression(
        read(data),
        groupby=groupby,
        group1=group1,
        group2=group2,
        idx1=idx1,
        idx2=idx2,
        mode=mode,  # type: ignore[arg-type]
        delta=delta,
        batch_size=batch_size,
        batch_correction=batch_correction,
        fdr_target=fdr_target,
        silent=quiet,
        sample_key=sample_key,
        seed=seed,
        test_mode=test_mode,  # type: ignore[arg-type]
    )
    write_table(found, output, index_label="gene")
    if volcano is not None:
        from vivace.pl import volcano as draw

        draw(found, found["comparison"].iloc[0], save=volcano)
    for name, about in found.attrs["comparisons"].items():
        called = f", {about['n_called']:,} genes called" if "n_called" in about else ""
        one, other = about["n_cells"]
        typer.echo(f"{name}: {one:,} and {other:,} cells{called}")
    typer.echo(f"Wrote {output}")


def _anndata_path(path: Path) -> Path:
    """``path``, which must say in which of AnnData's two formats."""
    if path.suffix not in (".h5ad", ".zarr"):
        raise OptionError(f"{path} must end in .h5ad or .zarr, which says how it is written.")
    return path


def _library(text: str):  # type: ignore[no-untyped-def]  # a number or a word
    try:
        return float(text)
    except ValueError:
        return text


def _transform(loaded, batches: Keys, others: Keys):  # type: ignore[no-untyped-def]
    """``transform_batch`` of Python from ``--transform-batch B`` and ``--transform COLUMN=C``."""
    columns: dict[str, list[str]] = {}
    for pair in others or ():
        column, sign, category = pair.partition("=")
        if not sign:
            raise OptionError(f"--transform takes COLUMN=CATEGORY, not {pair!r}.")
        columns.setdefault(column, []).append(category)
    if not columns:
        return batches
    key = loaded.schema.declarations.batch_key
    if batches and key is None:
        raise OptionError("The model has no batch, so that --transform-batch cannot name one.")
    return columns | ({key: batches} if batches else {})
