"""The command line: each command is an ordinary function, and its docstring is its help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vivace.config import settings
from vivace.errors import DataError, OptionError, VivaceError

app = typer.Typer(
    help="Probabilistic analysis of single-cell RNA-seq counts (scVI).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Keys = list[str] | None
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path(
        "vivace-demo"
    ),
    seed: Annotated[int, typer.Option(help="Of the whole run.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train on the PBMC 3k data that ship with vivace; write latent space, model and picture."""
    from vivace.demo import run_demo

    run_demo(output, seed=seed, progress=not quiet)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    layer: Annotated[
        str | None, typer.Option(help="Layer with the counts; X if not given.")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the batch.")] = None,
    labels_key: Annotated[str | None, typer.Option(help="Column of obs with a label.")] = None,
    size_factor_key: Annotated[
        str | None, typer.Option(help="Column of obs with size factors.")
    ] = None,
    categorical_covariate_key: Annotated[
        Keys, typer.Option(help="Column of obs with a further category; may be repeated.")
    ] = None,
    continuous_covariate_key: Annotated[
        Keys, typer.Option(help="Column of obs with a number; may be repeated.")
    ] = None,
    allow_non_integer: Annotated[
        bool, typer.Option("--allow-non-integer", help="Take counts that are not integers.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="mapping, for a reference that queries are mapped onto.")
    ] = None,
    n_hidden: Annotated[int, typer.Option(help="Units of a hidden layer.")] = 128,
    n_latent: Annotated[int, typer.Option(help="Latent dimensions.")] = 10,
    n_layers: Annotated[int, typer.Option(help="Hidden layers.")] = 1,
    dropout_rate: Annotated[float, typer.Option(help="Dropout in the encoder.")] = 0.1,
    gene_likelihood: Annotated[str, typer.Option(help="zinb, nb, poisson or normal.")] = "zinb",
    dispersion: Annotated[
        str, typer.Option(help="gene, gene-batch, gene-label or gene-cell.")
    ] = "gene",
    encode_covariates: Annotated[
        bool, typer.Option("--encode-covariates", help="The encoder sees batch and covariates.")
    ] = False,
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the cells; the recipe's choice if not given.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="fast or scvi-tools.")] = "fast",
    train_size: Annotated[float, typer.Option(help="Share of the cells to train on.")] = 0.9,
    batch_size: Annotated[int | None, typer.Option(help="Cells of a minibatch.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Minibatches at most.")] = None,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Stop where validation no longer improves.")
    ] = False,
    early_stopping_patience: Annotated[
        int | None, typer.Option(help="Epochs without an improvement before that.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the whole run.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model folder.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train SCVI on an h5ad of raw counts and save the model."""
    from vivace.scvi import SCVI
    from vivace.seeds import check_seed
    from vivace.store.folder import check_place

    check_place(output, overwrite)
    adata = _read(data)
    SCVI.setup_anndata(
        adata,
        layer=layer,
        batch_key=batch_key,
        labels_key=labels_key,
        size_factor_key=size_factor_key,
        categorical_covariate_keys=categorical_covariate_key,
        continuous_covariate_keys=continuous_covariate_key,
        allow_non_integer=allow_non_integer,
    )
    if seed is not None:
        settings.seed = check_seed(seed)
    model = SCVI(
        adata,
        preset=preset,  # type: ignore[arg-type]
        n_hidden=n_hidden,
        n_latent=n_latent,
        n_layers=n_layers,
        dropout_rate=dropout_rate,
        gene_likelihood=gene_likelihood,  # type: ignore[arg-type]
        dispersion=dispersion,  # type: ignore[arg-type]
        encode_covariates=encode_covariates,
    )
    model.train(
        max_epochs,
        recipe=recipe,
        train_size=train_size,
        batch_size=batch_size,
        max_steps=max_steps,
        early_stopping=early_stopping,
        early_stopping_patience=early_stopping_patience,
        seed=seed,
        accelerator=accelerator,
        progress=not quiet,
    )
    model.save(output, overwrite=overwrite)
    typer.echo(f"{model.summary}\nWrote {output}")


@app.command()
def embed(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts of the same genes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad to write.")],
    key_added: Annotated[str, typer.Option(help="Key in obsm.")] = "X_scVI",
) -> None:
    """Write IN.h5ad with the latent representation of its cells in obsm."""
    from vivace.model import load
    from vivace.store.folder import write_h5ad

    loaded = load(model)
    adata = _read(data)
    adata.obsm[key_added] = loaded.get_latent_representation(adata)
    write_h5ad(adata, output)
    typer.echo(f"Wrote {output}: {adata.n_obs:,} cells, obsm[{key_added!r}]")


@app.command(name="map")
def map_query(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the reference.")],
    data: Annotated[Path, typer.Argument(metavar="QUERY.h5ad", help="Raw counts of a query.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad to write.")],
    labels_key: Annotated[
        str | None, typer.Option(help="Column of the reference with labels to transfer.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="h5ad of the reference; what was saved with it if not given."),
    ] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="Column of var with the reference's gene identifiers.")
    ] = None,
    min_overlap: Annotated[
        float, typer.Option(help="Least share of the reference's genes in the query.")
    ] = 0.8,
    max_novelty: Annotated[
        float | None, typer.Option(help="Label more novel cells Unknown; 0.95, for example.")
    ] = None,
    min_probability: Annotated[
        float | None, typer.Option(help="Label less probable cells Unknown.")
    ] = None,
    unfrozen: Annotated[
        bool, typer.Option("--unfrozen", help="Train all weights, not only those of the query.")
    ] = False,
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the query; the recipe's choice if not given.")
    ] = None,
    save_model: Annotated[
        Path | None, typer.Option(help="Folder to write the model of the query into.")
    ] = None,
    key_added: Annotated[str, typer.Option(help="Key in obsm.")] = "X_scVI",
    seed: Annotated[int | None, typer.Option(help="Of training and draws.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Map a query onto a reference: its latent representation in obsm, labels in obs.

    QUERY.h5ad needs the columns that the reference was set up with, but for its labels.
    """
    from vivace.arguments import any_column_of
    from vivace.model import load
    from vivace.seeds import check_seed
    from vivace.store.folder import check_place, write_h5ad
    from vivace.store.matrix import check_free

    if output.suffix != ".h5ad":
        raise OptionError(f"{output} must end in .h5ad.")
    check_free(output, overwrite)
    if save_model is not None:
        check_place(save_model, overwrite)
    if reference is not None and labels_key is None:
        raise OptionError("--reference is where labels come from; give --labels-key too.")
    if seed is not None:
        settings.seed = check_seed(seed)
    known = load(model)
    told = None if reference is None else _read(reference)
    if labels_key is not None:
        labelled = known.adata if told is None else told
        if labelled is None:
            raise OptionError(
                f"{model} holds no data, and labels come from them; give --reference too, or save the "
                "reference model with its data."
            )
        any_column_of(labelled, "--labels-key", labels_key)
    query = _read(data)
    aligned = query.copy()
    report = known.prepare_query_anndata(aligned, known, gene_key=gene_key, min_overlap=min_overlap)
    typer.echo(repr(report))
    mapped = known.load_query_data(aligned, known, unfrozen=unfrozen)  # type: ignore[arg-type]
    mapped.train(max_epochs, seed=seed, progress=not quiet)
    query.obsm[key_added] = mapped.get_latent_representation(silent=quiet)
    if labels_key is not None:
        found = mapped.transfer_labels(
            None,
            labels_key,
            told,
            min_probability=min_probability,
            max_novelty=max_novelty,
            seed=seed,
            silent=quiet,
        )
        for column in found:
            name = labels_key if column == "label" else f"{labels_key}_{column}"
            query.obs[f"transferred_{name}"] = found[column].to_numpy()
    if save_model is not None:
        mapped.save(save_model, overwrite=overwrite)
    write_h5ad(query, output)
    if labels_key is not None:
        for name, cells in found["label"].value_counts().items():
            sure = found["probability"][found["label"] == name].mean()
            typer.echo(f"{name}: {cells:,} cells, mean probability {sure:.2f}")
    typer.echo(f"Wrote {output}: {query.n_obs:,} cells, obsm[{key_added!r}]")


@app.command()
def express(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts of the same genes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".h5ad or .zarr to write.")],
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
    batch_size: Annotated[int | None, typer.Option(help="Cells at a time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write the expected expression of each cell and gene, free of noise and depth."""
    from vivace.methods.base import size_of
    from vivace.model import load
    from vivace.store.matrix import check_free, dense_file

    check_free(_anndata_path(output), overwrite)
    loaded = load(model)
    adata = _read(data)
    loaded.schema.genes_at(gene)  # refused before anything is written
    loaded.schema.gene_positions(adata)
    genes = list(loaded.schema.genes) if gene is None else gene
    var = adata.var.loc[genes]
    chosen = _transform(loaded, transform_batch, transform)
    size = size_of(batch_size, len(loaded.schema.genes))
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


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts of the same genes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".h5ad or .zarr to write.")],
    transform_batch: Annotated[
        Keys, typer.Option(help="Batch to draw for; of several one at random for each cell.")
    ] = None,
    transform: Annotated[
        Keys, typer.Option(help="COLUMN=CATEGORY to draw for; may be repeated.")
    ] = None,
    n_samples: Annotated[
        int, typer.Option(help="Draws a cell; obs['draw'] tells several apart.")
    ] = 1,
    batch_size: Annotated[int | None, typer.Option(help="Cells at a time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write counts as the model would observe them, were the cells sequenced again."""
    import numpy as np
    from anndata import AnnData

    from vivace.arguments import positive
    from vivace.model import load
    from vivace.store.matrix import check_free, write_anndata

    positive("n_samples", n_samples)
    check_free(_anndata_path(output), overwrite)
    loaded = load(model)
    adata = _read(data)
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


@app.command()
def de(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts of the same genes.")],
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
    batch_size: Annotated[int | None, typer.Option(help="Cells at a time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write which genes differ between groups of cells, and how sure that is."""
    from vivace.model import load
    from vivace.store.matrix import check_free
    from vivace.store.table import check_table, write_table

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
        _read(data),
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


@app.command()
def info(model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")]) -> None:
    """Say what a saved model is: options, data it was trained on, training."""
    from vivace.model import load

    loaded = load(model)
    typer.echo(loaded.summary)
    typer.echo(loaded.view_anndata_setup().to_string(index=False))


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, of either format.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    to: Annotated[str, typer.Option(help="vivace or scvi-tools.")] = "vivace",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model folder.")
    ] = False,
) -> None:
    """Turn a model that scvi-tools saved into one of ours, or the other way."""
    from vivace.model import load

    loaded = load(model)
    loaded.save(
        output,
        overwrite=overwrite,
        save_anndata=loaded.adata is not None,
        format=to,  # type: ignore[arg-type]
    )
    typer.echo(f"{loaded.summary}\nWrote {output} for {to}")


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


def _read(path: Path):  # type: ignore[no-untyped-def]  # anndata is imported late
    import warnings

    from anndata import OldFormatWarning, read_h5ad

    from vivace.store.folder import UNREADABLE

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OldFormatWarning)  # it is read all the same
            return read_h5ad(path)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}; check the path.") from error
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as h5ad ({error}); check the file.") from error


def main() -> None:
    """Run the command line; what vivace refuses becomes one sentence and exit code 2."""
    try:
        app(prog_name="vivace")  # however Python was started
    except (VivaceError, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"vivace: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
