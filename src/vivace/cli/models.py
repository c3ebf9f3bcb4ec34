"""Model folders: ``vivace info`` and ``vivace convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vivace.cli.common import ModelFolder


def info(model: ModelFolder) -> None:
    """Say what a saved model is: options, data it was trained on, training."""
    from vivace.model import load

    loaded = load(model)
    typer.echo(loaded.summary)
    typer.echo(loaded.view_anndata_setup().to_string(index=False))


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
