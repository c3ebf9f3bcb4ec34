"""``vivace map``: a query onto a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vivace.cli.common import Overwrite, Quiet, Threads, read, use_threads
from vivace.config import settings
from vivace.errors import OptionError


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
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Map a query onto a reference: its latent representation in obsm, labels in obs.

    QUERY.h5ad needs the columns that the reference was set up with, but for its labels.
    """
    from vivace.model import load
    from vivace.seeds import check_seed
    from vivace.store.arrays import check_free
    from vivace.store.folder import check_place, write_h5ad
    from vivace.transfer.labels import labels_of
    from vivace.transfer.options import LabelOptions

    use_threads(threads)
    if output.suffix != ".h5ad":
        raise OptionError(f"{output} must end in .h5ad.")
    check_free(output, overwrite)
    if save_model is not None:
        check_place(save_model, overwrite)
    if not key_added:
        raise OptionError("--key-added must be a name.")
    LabelOptions(max_novelty=max_novelty, min_probability=min_probability)
    for option, value in (
        ("--reference", reference),
        ("--max-novelty", max_novelty),
        ("--min-probability", min_probability),
    ):
        if value is not None and labels_key is None:
            raise OptionError(f"{option} is about labels; give --labels-key too.")
    if seed is not None:
        settings.seed = check_seed(seed)
    known = load(model)
    told = None if reference is None else read(reference)
    if labels_key is not None:
        labelled = known.adata if told is None else told
        if labelled is None:
            raise OptionError(
                f"{model} holds no data, and labels come from them; give --reference too, or save the "
                "reference model with its data."
            )
        labels_of(labelled, labels_key)
    query = read(data)
    aligned = query.copy()
    report = known.prepare_query_anndata(aligned, known, gene_key=gene_key, min_overlap=min_overlap)
    typer.echo(repr(report))
    mapped = known.load_query_data(aligned, known, unfrozen=unfrozen)
    mapped.train(max_epochs, seed=seed, progress=not quiet)
    query.uns["query_genes"] = aligned.uns["query_genes"]
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
