"""``vivace demo`` and ``vivace train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vivace.cli.common import Keys, Quiet, Threads, read, use_threads
from vivace.config import settings


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path(
        "vivace-demo"
    ),
    seed: Annotated[int, typer.Option(help="Of the whole run.")] = 0,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train on the PBMC 3k data that ship with vivace; write latent space, model and picture."""
    from vivace.demo import run_demo

    use_threads(threads)
    run_demo(output, seed=seed, progress=not quiet)


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
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train SCVI on an h5ad of raw counts and save the model."""
    from vivace.model import SCVI
    from vivace.seeds import check_seed
    from vivace.store.folder import check_place

    use_threads(threads)
    check_place(output, overwrite)
    adata = read(data)
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
