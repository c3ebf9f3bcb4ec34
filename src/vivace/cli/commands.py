"""The commands: each is a function, and its docstring is its help.

Options that are parameters of the Python API take their names, defaults and help from the source
of that function; see :mod:`vivace.cli.forwarding`. Commands import torch and the models when they run:
importing them takes a second, and help must not wait for it.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivace.cli.forwarding import app, command, forward, given_options
from vivace.cli.interrupts import end_interrupted, was_interrupted_once
from vivace.config import MOST_THREADS, settings
from vivace.errors import OptionError, VivaceError, brief

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vivace.model import SCVI, LinearSCVI

# ---- options of the command line itself -------------------------------------------------

Keys = list[str] | None
ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")]
Counts = Annotated[
    Path, typer.Argument(metavar="IN.h5ad", help="Raw counts of the same genes, .h5ad or .zarr.")
]
NewAnnData = Annotated[Path, typer.Option("--output", "-o", help=".h5ad or .zarr to write.")]
NewModel = Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")]
KeyAdded = Annotated[str, typer.Option(help="Key in obsm.")]
Batches = Annotated[Keys, typer.Option(help="Batch to decode as. May be repeated.")]
Covariates = Annotated[Keys, typer.Option(help="COLUMN=CATEGORY to decode as. May be repeated.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_THREADS, help="Threads; by default as many as there are free cores."
    ),
]
_ANNDATA = (".h5ad", ".zarr")
_FIGURES = (".png", ".pdf", ".svg")
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vivace {version('vivace')}")
        raise typer.Exit


@app.callback()
def _before_commands(
    _: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


# ---- commands, in the order in which ``vivace --help`` lists them ------------------------


@command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path(
        "vivace-demo"
    ),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train on the PBMC 3k data in the package; write latent space, model and figure."""
    from vivace.demo import run_demo

    _use_threads(threads)
    run_demo(output, seed=seed, overwrite=overwrite, progress=not quiet)


_SETUP = forward(
    "data/declare.py:setup_anndata",
    "layer batch_key labels_key size_factor_key"
    " categorical_covariate_keys=categorical_covariate_key"
    " continuous_covariate_keys=continuous_covariate_key allow_non_integer",
)
_NETWORK = forward(
    "model.py:SCVI",
    "preset n_hidden n_latent n_layers dropout_rate gene_likelihood dispersion encode_covariates",
    n_hidden="Units of each hidden layer.",
    n_latent="Dimensions of the latent space.",
    n_layers="Hidden layers of the encoder and of the decoder.",
)
_TRAINING = forward(
    "train/run.py:train",
    "max_epochs recipe train_size batch_size max_steps early_stopping early_stopping_patience"
    " seed accelerator",
    train_size="Fraction of the cells to train on.",
    early_stopping="Stop when the validation ELBO no longer improves.",
    early_stopping_patience="Epochs without an improvement after which training stops early.",
)


@command(setup=_SETUP, network=_NETWORK, training=_TRAINING)
def train(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts, .h5ad or .zarr.")],
    output: NewModel,
    setup: Any,
    network: Any,
    training: Any,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the model in the folder, with its options.")
    ] = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train SCVI on an h5ad of raw counts and save the model.

    Ctrl-C saves the best epoch so far and prints the command that goes on.
    """
    from vivace.model import SCVI, load
    from vivace.store.anndata_read import check_anndata, read_anndata
    from vivace.store.anndata_write import storable
    from vivace.store.folder import WITHOUT_DATA, holds_data
    from vivace.store.scvi_tools import is_scvi_tools

    _use_threads(threads)
    check_anndata(data)
    keep = {"overwrite": overwrite or resume, "save_anndata": resume and holds_data(output)}
    _check_model_output(output, keep["overwrite"], [data])
    if resume:
        if is_scvi_tools(output):
            raise OptionError(
                f"{output} is a folder of scvi-tools, which --resume would replace; convert it "
                f"first, vivace convert {shlex.quote(str(output))} -o NEW, and go on with NEW."
            )
        stored = load(output)
        options = setup | network | {"train_size": training["train_size"]}
        given = {key: value for key, value in options.items() if _is_given(context, key)}
        _check_same_options(output, stored, given)
        adata = read_anndata(data)
        if keep["save_anndata"]:
            storable(adata, WITHOUT_DATA)
        model = load(output, adata)
    else:
        adata = read_anndata(data)
        SCVI.setup_anndata(adata, **setup)
        _use_seed(training["seed"])
        model = SCVI(adata, **network)
    earlier = len(model.history)
    try:
        model.train(**training, progress=not quiet)
    except BaseException:  # Ctrl-C, also where Numba made another error of it
        done = len(model.history) - earlier
        if not was_interrupted_once():
            raise
        if not done:
            end_interrupted("Interrupted before an epoch was complete; nothing was saved.")
        _save_somewhere(model, output, **keep)
        line = ["vivace", "train", str(data), "-o", str(output), "--resume"]
        line += ["--max-epochs", str(_epochs_left(model, training, done))]
        line += given_options(_TRAINING, training | _NOT_REPEATED)
        line += ["--threads", str(threads)] if threads else []
        line += ["--quiet"] if quiet else []
        said = model.summary.splitlines()[-1].removeprefix("verdict: ")
        end_interrupted(
            f"{said}\nWrote {output}; to go on (the schedule of training starts anew):\n"
            f"{shlex.join(line)}"
        )
    _save_somewhere(model, output, **keep)
    typer.echo(f"{model.summary}\nWrote {output}")


def _save_somewhere(
    model: SCVI | LinearSCVI, output: Path, overwrite: bool, save_anndata: bool
) -> None:
    """Save a trained model, or a copy among the temporary files if that fails."""
    try:
        model.save(output, overwrite=overwrite, save_anndata=save_anndata)
    except VivaceError as error:
        copy = Path(mkdtemp(prefix="vivace-")) / output.name
        try:
            model.save(copy)
        except VivaceError:
            rmtree(copy.parent, ignore_errors=True)
            raise error from None
        sentence = str(error).removesuffix(".")
        raise type(error)(f"{sentence}; the trained model was saved as {copy}.") from error


# The split of the model stays, its random stream goes on, and the epochs are those that are left.
_NOT_REPEATED = dict.fromkeys(("train_size", "seed", "max_epochs", "max_steps"))


def _epochs_left(model: SCVI | LinearSCVI, training: dict[str, Any], done: int) -> int:
    """Epochs that an interrupted call of ``train`` had left, at least 1."""
    from vivace.train.recipe import RECIPES

    recipe, n_train = RECIPES[training["recipe"]], len(model.train_indices)
    epochs, max_steps = training["max_epochs"], training["max_steps"]
    if epochs is None and (max_steps is None or max_steps < 0):
        n_cells = n_train + len(model.validation_indices)
        epochs = recipe.choose_epochs(n_cells, n_train)
    if max_steps is not None and max_steps > 0:
        batch_size = training["batch_size"] or recipe.choose_batch_size(n_train)
        by_steps = math.ceil(max_steps / math.ceil(n_train / batch_size))
        epochs = min(epochs or by_steps, by_steps)
    return max(1, int(epochs) - done)


def _is_given(context: typer.Context, key: str) -> bool:
    """Whether a parameter of the Python API was given on the command line, even as its default."""
    source = context.get_parameter_source((_SETUP | _NETWORK | _TRAINING)[key].name)
    return source is not None and source.name == "COMMANDLINE"


def _check_same_options(folder: Path, model: SCVI | LinearSCVI, given: Mapping[str, Any]) -> None:
    """Refuse an option that differs from that of the model that training goes on with."""
    config, declared = model.config, model.schema.declarations
    n_train = len(model.train_indices)
    n_cells = n_train + len(model.validation_indices)
    for key, value in given.items():
        if key in _SETUP:
            value = tuple(value) if isinstance(value, list) else value
            same = value == getattr(declared, key)
        elif key == "train_size":  # the split of the model stays
            same = not n_cells or n_train == math.ceil(n_cells * value - 1e-9)
        elif key == "preset":
            same = config.with_preset(value) == config
        else:
            same = replace(config, **{key: value}) == config
        if not same:
            flag = (_SETUP | _NETWORK | _TRAINING)[key].name.replace("_", "-")
            raise OptionError(
                f"--resume goes on with the model in {folder}, which does not have --{flag} "
                f"{brief(value)}; leave out --{flag}, or train a new model without --resume."
            )


def _load_for(
    output: Path, endings: Sequence[str], overwrite: bool, model: Path, data: Path
) -> SCVI | LinearSCVI:
    """The model of a command; what cannot be read is named first, then a bad output."""
    from vivace.model import load
    from vivace.store.anndata_read import check_anndata

    loaded = load(model)
    check_anndata(data)
    _check_output(output, endings, overwrite, [model, data])
    return loaded


@command()
def embed(
    model: ModelFolder,
    data: Counts,
    output: NewAnnData,
    key_added: KeyAdded = "X_scVI",
    overwrite: Overwrite = False,
    threads: Threads = None,
) -> None:
    """Write IN.h5ad with the latent representation of its cells in obsm."""
    from vivace.store.anndata_read import read_anndata
    from vivace.store.anndata_write import read_compression, storable
    from vivace.store.arrays import write_anndata

    _use_threads(threads)
    loaded = _load_for(output, _ANNDATA, overwrite, model, data)
    _check_key(key_added)
    adata = read_anndata(data)
    storable(adata, zarr=output.suffix == ".zarr")
    adata.obsm[key_added] = loaded.get_latent_representation(adata)
    write_anndata(adata, output, read_compression(data))
    typer.echo(f"Wrote {output}: {adata.n_obs:,} cells, obsm[{key_added!r}]")


@command(
    "map",
    matching=forward("transfer/genes.py:prepare_query_anndata", "gene_key min_overlap"),
    surgery=forward("transfer/query.py:load_query_data", "unfrozen allow_non_integer"),
    training=forward("train/run.py:train", "max_epochs seed"),
    labelling=forward(
        "transfer/labels.py:transfer_labels",
        "max_novelty min_probability seed",
        max_novelty='Label cells with a higher novelty "Unknown"; for example, 0.95.',
        min_probability='Label cells with a lower probability "Unknown".',
    ),
)
def map_query(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the reference.")],
    data: Annotated[Path, typer.Argument(metavar="QUERY.h5ad", help="Raw counts of a query.")],
    output: NewAnnData,
    matching: Any,
    surgery: Any,
    training: Any,
    labelling: Any,
    labels_key: Annotated[
        str | None, typer.Option(help="Column of the reference with labels to transfer.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="h5ad of the reference; by default the data saved with the model."),
    ] = None,
    save_model: Annotated[
        Path | None, typer.Option(help="Folder to write the model of the query into.")
    ] = None,
    key_added: KeyAdded = "X_scVI",
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Map a query onto a reference: its latent representation in obsm, labels in obs.

    QUERY.h5ad needs the columns that the reference was set up with, except its labels.
    """
    from vivace.model import load
    from vivace.store.anndata_read import check_anndata, read_anndata
    from vivace.store.anndata_write import read_compression, storable
    from vivace.store.arrays import write_anndata
    from vivace.store.place import check_separate
    from vivace.transfer.labels import CHECKS, read_labels

    # Refuse invalid arguments before training.
    _use_threads(threads)
    inputs = [model, data, reference]
    loaded = load(model)
    for path in inputs[1:]:
        if path is not None:
            check_anndata(path)
    _check_output(output, _ANNDATA, overwrite, inputs)
    if save_model is not None:
        check_separate(output, save_model)
        _check_model_output(save_model, overwrite, inputs)
    _check_key(key_added)
    limits = {name: labelling[name] for name in ("max_novelty", "min_probability")}
    for name, value in limits.items():
        CHECKS[name](name, value)
    for name, value in {"reference": reference, **limits}.items():
        if value is not None and labels_key is None:
            flag = name.replace("_", "-")
            raise OptionError(f"--{flag} applies to labels; give --labels-key too.")
    _use_seed(training["seed"])
    labelled = None if reference is None else read_anndata(reference)
    if labels_key is not None:
        source = loaded.adata if labelled is None else labelled
        if source is None:
            raise OptionError(
                f"{model} holds no data to take labels from; give --reference too, or save the "
                "reference model with its data."
            )
        read_labels(source, labels_key)
    query = read_anndata(data)
    storable(query, zarr=output.suffix == ".zarr")

    # The query keeps its own genes; a copy is aligned to the reference.
    aligned = query.copy()
    genes = loaded.prepare_query_anndata(aligned, loaded, **matching)
    typer.echo(repr(genes))
    mapped = loaded.load_query_data(aligned, loaded, **surgery)
    mapped.train(**training, progress=not quiet)
    query.uns["query_genes"] = aligned.uns["query_genes"]
    query.obsm[key_added] = mapped.get_latent_representation(silent=quiet)
    if labels_key is not None:
        labels = mapped.transfer_labels(None, labels_key, labelled, **labelling, silent=quiet)
        for column in labels:
            name = labels_key if column == "label" else f"{labels_key}_{column}"
            query.obs[f"transferred_{name}"] = labels[column].to_numpy()
    if save_model is not None:
        mapped.save(save_model, overwrite=overwrite)
    write_anndata(query, output, read_compression(data))
    if labels_key is not None:
        for name, n_cells in labels["label"].value_counts().items():
            mean = labels["probability"][labels["label"] == name].mean()
            typer.echo(f"{name}: {n_cells:,} cells, mean probability {mean:.2f}")
    typer.echo(f"Wrote {output}: {query.n_obs:,} cells, obsm[{key_added!r}]")


@command(
    expression=forward(
        "questions/expression.py:get_normalized_expression",
        "gene_list=gene library_size n_samples batch_size seed",
        batch_size="Cells at a time.",
    )
)
def express(
    model: ModelFolder,
    data: Counts,
    output: NewAnnData,
    expression: Any,
    transform_batch: Batches = None,
    transform: Covariates = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Write the expected expression of each cell and gene, without noise or sequencing depth.

    Expression is averaged over the batches and categories to decode as.
    """
    from vivace.core import minibatch_size
    from vivace.store.anndata_read import read_anndata
    from vivace.store.anndata_write import read_compression
    from vivace.store.arrays import dense_file

    _use_threads(threads)
    loaded = _load_for(output, _ANNDATA, overwrite, model, data)
    adata = read_anndata(data)
    # Unknown genes are refused before anything is written.
    loaded.schema.genes_at(expression["gene_list"])
    loaded.schema.gene_positions(adata)
    genes = list(
        loaded.schema.genes if expression["gene_list"] is None else expression["gene_list"]
    )
    var = adata.var.loc[genes]
    expression["transform_batch"] = _transform(loaded, transform_batch, transform)
    expression["library_size"] = _number_or_word(expression["library_size"])
    n_rows = minibatch_size(expression["batch_size"], len(loaded.schema.genes))
    with dense_file(output, adata.obs, var, n_rows, read_compression(data)) as x:
        loaded.get_normalized_expression(adata, **expression, silent=quiet, out=x)
    typer.echo(f"Wrote {output}: {adata.n_obs:,} cells x {len(genes):,} genes")


@command(
    sampling=forward(
        "questions/sample.py:posterior_predictive_sample",
        "n_samples batch_size seed",
        n_samples="Samples per cell; obs['draw'] numbers them if there are several.",
        batch_size="Cells at a time.",
    )
)
def sample(
    model: ModelFolder,
    data: Counts,
    output: NewAnnData,
    sampling: Any,
    transform_batch: Batches = None,
    transform: Covariates = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Write counts as the model would observe them if the cells were sequenced again.

    Each cell is decoded as one of the given batches and categories, chosen at random.
    """
    import numpy as np
    from anndata import AnnData

    from vivace.store.anndata_read import read_anndata
    from vivace.store.anndata_write import read_compression, storable
    from vivace.store.arrays import write_anndata
    from vivace.validate import COUNT

    _use_threads(threads)
    n_samples = sampling.pop("n_samples")
    COUNT("n_samples", n_samples)
    loaded = _load_for(output, _ANNDATA, overwrite, model, data)
    adata = read_anndata(data)
    var = adata.var.loc[list(loaded.schema.genes)]
    storable(AnnData(obs=adata.obs, var=var), zarr=output.suffix == ".zarr")
    # h5ad cannot hold a third dimension, so further samples become further rows.
    rows = np.tile(np.arange(adata.n_obs), n_samples)
    sampling["transform_batch"] = _transform(loaded, transform_batch, transform)
    counts = loaded.posterior_predictive_sample(adata, rows, **sampling, silent=quiet)
    obs = adata.obs.iloc[rows].copy()
    if n_samples > 1:
        obs["draw"] = np.repeat(np.arange(n_samples), adata.n_obs)
        obs.index = obs.index.astype(str) + "-" + obs["draw"].astype(str)
    samples = AnnData(counts, obs=obs, var=var)
    write_anndata(samples, output, read_compression(data))
    typer.echo(f"Wrote {output}: {samples.n_obs:,} cells x {samples.n_vars:,} genes")


@command(
    comparison=forward(
        "de/differential.py:differential_expression",
        "groupby group1 group2 idx1 idx2 mode delta fdr_target test_mode sample_key"
        " batch_correction batch_size seed",
        idx1="Instead of groups, a query of obs: \"donor == 'd1'\".",
        idx2="The cells to compare with, as a query of obs; by default all other cells.",
        delta="Smallest log2 fold change that counts.",
        batch_correction="Compare cells as if they were of the same batch.",
        batch_size="Cells at a time.",
    )
)
def de(
    model: ModelFolder,
    data: Counts,
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to write, .csv or .tsv.")],
    comparison: Any,
    volcano: Annotated[
        Path | None, typer.Option(help="Also draw the (first) comparison: .png, .pdf or .svg.")
    ] = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Write a table with the probability that each gene differs between groups of cells."""
    from vivace.pl import volcano as draw_volcano
    from vivace.report import need_plotting
    from vivace.store.anndata_read import read_anndata
    from vivace.store.place import written_whole
    from vivace.store.table import TABLES, write_table

    _use_threads(threads)
    loaded = _load_for(output, TABLES, overwrite, model, data)
    if volcano is not None:
        need_plotting()
        _check_output(volcano, _FIGURES, overwrite, [model, data])
        if comparison["mode"] == "vanilla":
            raise OptionError(
                "--volcano shows called genes, but mode 'vanilla' calls none; drop one of the two."
            )
    result = loaded.differential_expression(read_anndata(data), **comparison, silent=quiet)
    write_table(result, output, index_label="gene")
    if volcano is not None:
        with written_whole(volcano) as new:
            draw_volcano(result, result["comparison"].iloc[0], save=new)
    for name, about in result.attrs["comparisons"].items():
        called = f", {about['n_called']:,} genes called" if "n_called" in about else ""
        n_1, n_2 = about["n_cells"]
        typer.echo(f"{name}: {n_1:,} and {n_2:,} cells{called}")
    typer.echo(f"Wrote {output}")


@command()
def info(model: ModelFolder) -> None:
    """Show a saved model: its options, its data and how it was trained."""
    from vivace.model import load

    loaded = load(model)
    typer.echo(loaded.summary)
    typer.echo(loaded.view_anndata_setup().to_string(index=False))


@command(files=forward("store/saving.py:save", "format=to"))
def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, of either format.")],
    output: NewModel,
    files: Any,
    overwrite: Overwrite = False,
) -> None:
    """Convert a model saved by scvi-tools to vivace's format, or vice versa."""
    from vivace.model import load

    loaded = load(model)
    _check_model_output(output, overwrite, [model])
    loaded.save(output, overwrite=overwrite, save_anndata=loaded.adata is not None, **files)
    typer.echo(f"{loaded.summary}\nWrote {output} for {files['format']}")


# ---- what commands share ----------------------------------------------------------------


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        settings.num_threads = threads


def _use_seed(seed: int | None) -> None:
    """Start the random stream of new models at ``seed``, if one is given."""
    from vivace.seeds import check_seed

    if seed is not None:
        settings.seed = check_seed(seed)


def _check_output(
    path: Path, endings: Sequence[str], overwrite: bool, inputs: Sequence[Path | None]
) -> None:
    """Refuse, before anything is computed, a path that the result cannot or should not go to."""
    from vivace.store.arrays import import_zarr
    from vivace.store.place import check_apart, check_ending, check_free

    check_ending(path, endings)
    check_apart(path, inputs)
    check_free(path, overwrite)
    if path.suffix == ".zarr":
        import_zarr()


def _check_model_output(path: Path, overwrite: bool, inputs: Sequence[Path | None]) -> None:
    """Refuse, before anything is computed, a folder that the model cannot or should not go to."""
    from vivace.store.folder import check_place
    from vivace.store.place import check_apart

    check_apart(path, inputs)
    if path.suffix in (*_ANNDATA, *_FIGURES, ".csv", ".tsv"):
        raise OptionError(
            f"{path} would be the folder of a model, not a {path.suffix} file; choose another path."
        )
    check_place(path, overwrite)


def _check_key(key_added: str) -> None:
    if key_added in ("", ".", "..") or "/" in key_added:
        raise OptionError(f"--key-added must be a name without '/', not {brief(key_added)}.")


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _transform(loaded: SCVI | LinearSCVI, batches: Keys, pairs: Keys) -> Any:
    """``transform_batch`` of the Python API from --transform-batch and --transform."""
    columns: dict[str, list[str]] = {}
    for pair in pairs or ():
        column, sign, category = pair.partition("=")
        if not sign:
            raise OptionError(f"--transform takes COLUMN=CATEGORY, not {pair!r}.")
        columns.setdefault(column, []).append(category)
    if not columns:
        return batches
    key = loaded.schema.declarations.batch_key
    if batches and key is None:
        raise OptionError(
            "The model has no batch, so --transform-batch does not apply; leave it out."
        )
    return columns | ({key: batches} if batches else {})
