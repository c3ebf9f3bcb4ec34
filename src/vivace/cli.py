"""The command line: each command is a function, and its docstring is its help.

Options that are parameters of the Python API take their names, defaults and help from the source
of that function; see :func:`forward`. Commands import torch and the models when they run:
importing them takes a second, and help must not wait for it.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivace.config import settings
from vivace.errors import DataError, OptionError, VivaceError

if TYPE_CHECKING:
    from anndata import AnnData

    from vivace.model import SCVI, LinearSCVI

app = typer.Typer(
    help="Probabilistic analysis of single-cell RNA-seq counts (scVI).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line. An error that vivace raises is one sentence and exit code 2."""
    _limit_spinning()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a console without the letters of a name, such as "µ" in ASCII, is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="vivace")  # the name in messages, even under ``python -c``
    except (VivaceError, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"vivace: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _limit_spinning() -> None:
    """Let idle OpenMP threads sleep after a short spin.

    GNU's OpenMP otherwise spins for several milliseconds. That gains nothing on an idle machine,
    and slows a busy one fourfold until the number of threads has adapted. The variable is read
    when torch is imported; a user's OMP_WAIT_POLICY takes precedence.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


# ---- options that are parameters of the Python API --------------------------------------

Options = dict[str, inspect.Parameter]


def forward(source: str, names: str, **texts: str) -> Options:
    """Options that are parameters of a Python function: name, type, default and help are its own.

    Parameters
    ----------
    source
        Where the function is written, as "file:name"; a class stands for its ``__init__``. It is
        parsed and not imported, because importing it imports torch.
    names
        The parameters, separated by spaces; "gene_list=gene" calls the option --gene.
    **texts
        Help for parameters whose docstring does not suit the command line.

    Returns
    -------
    The options by parameter name, each as a parameter that Typer understands.
    """
    known, described = _read_function(source)
    options = {}
    for name, _, option in (pair.partition("=") for pair in names.split()):
        annotation, default = known[name]
        text = texts.get(name) or described[name]
        # A Literal is read as text; the API refuses invalid words.
        kind: Any = {"int": int, "float": float}.get(annotation.removesuffix(" | None"), str)
        if annotation.startswith("bool"):
            kind = bool
        elif "Sequence[str]" in annotation:
            kind, text = list[str], f"{text} May be repeated."
        elif kind is str and default is not None:
            default = str(default)
        option = option or name
        # Spell out the name; otherwise Typer adds a --no-... variant to a flag.
        declared = typer.Option("--" + option.replace("_", "-"), help=text)
        options[name] = inspect.Parameter(
            option,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=default,
            annotation=Annotated[kind | None, declared],
        )
    return options


def command(name: str | None = None, **groups: Options) -> Callable[[Any], Any]:
    """Register a function as a command that has the forwarded options too.

    The function receives each group as one dictionary of keyword arguments.
    """

    def register(function: Any) -> Any:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in groups]

        @wraps(function)
        def run(**values: Any) -> None:
            for group, options in groups.items():
                values[group] = {key: values[p.name] for key, p in options.items()}
            function(**{key: values[key] for key in signature.parameters})

        forwarded = {p.name: p for options in groups.values() for p in options.values()}
        required = [p for p in own if p.default is p.empty]
        optional = [p for p in own if p.default is not p.empty]
        run.__signature__ = inspect.Signature([*required, *forwarded.values(), *optional])  # type: ignore[attr-defined]
        return app.command(name)(run)

    return register


def _read_function(source: str) -> tuple[dict[str, tuple[str, Any]], dict[str, str]]:
    """Annotation and default of the optional parameters of a function, and their descriptions."""
    file, _, name = source.partition(":")
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    # To be fast, parse only the definition: up to the next line that is not indented further.
    lines = re.search(rf"^( *)(def|class) {name}\b(.*\n(?!\1?[^\s)]))*.*", text, re.MULTILINE)
    node: Any = ast.parse(dedent(lines[0])).body[0]  # type: ignore[index]
    described = _describe(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        node = next(n for n in node.body if getattr(n, "name", "") == "__init__")
    optional = node.args.args[len(node.args.args) - len(node.args.defaults) :]
    pairs = [
        *zip(optional, node.args.defaults, strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    known = {
        argument.arg: (ast.unparse(argument.annotation), ast.literal_eval(default))
        for argument, default in pairs
        if default is not None
    }
    return known, described


def _describe(docstring: str) -> dict[str, str]:
    r"""The description of each parameter in the "Parameters" section of a numpydoc docstring.

    Examples
    --------
    >>> _describe("Fit.\n\nParameters\n----------\nlayer, key\n    Name of ``x``;\n    None for X.")
    {'layer': 'Name of x; by default X.', 'key': 'Name of x; by default X.'}
    """
    section = re.split(r"\n\n\w.*\n---", docstring.partition("Parameters\n----------\n")[2])[0]
    section = re.sub(r"(:\w+:)?`+[~.]*([^`]+)`+", r"\2", section)  # ``code`` and :meth:`links`
    # An option that is left out becomes None.
    section = section.replace("None for", "by default").replace(". None", ". The default")
    section = section.replace("None", "the default")
    return {
        name: " ".join(text.split())
        for names, text in re.findall(r"^(\w.*)\n((?: .*\n|\n)+)", section + "\n", re.MULTILINE)
        for name in names.split(", ")
    }


# ---- options of the command line itself -------------------------------------------------

Keys = list[str] | None
ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")]
Counts = Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts of the same genes.")]
NewFile = Annotated[Path, typer.Option("--output", "-o", help="h5ad to write.")]
NewMatrix = Annotated[Path, typer.Option("--output", "-o", help=".h5ad or .zarr to write.")]
NewModel = Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")]
KeyAdded = Annotated[str, typer.Option(help="Key in obsm.")]
Batches = Annotated[Keys, typer.Option(help="Batch to decode as. May be repeated.")]
Covariates = Annotated[Keys, typer.Option(help="COLUMN=CATEGORY to decode as. May be repeated.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads; by default as many as there are free cores.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


# ---- commands, in the order in which ``vivace --help`` lists them ------------------------


@command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path(
        "vivace-demo"
    ),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train on the PBMC 3k data in the package; write latent space, model and figure."""
    from vivace.demo import run_demo

    _use_threads(threads)
    run_demo(output, seed=seed, progress=not quiet)


@command(
    setup=forward(
        "data/declare.py:setup_anndata",
        "layer batch_key labels_key size_factor_key"
        " categorical_covariate_keys=categorical_covariate_key"
        " continuous_covariate_keys=continuous_covariate_key allow_non_integer",
    ),
    network=forward(
        "model.py:SCVI",
        "preset n_hidden n_latent n_layers dropout_rate gene_likelihood dispersion encode_covariates",
        n_hidden="Units of each hidden layer.",
        n_latent="Dimensions of the latent space.",
        n_layers="Hidden layers of the encoder and of the decoder.",
    ),
    training=forward(
        "train/run.py:train",
        "max_epochs recipe train_size batch_size max_steps early_stopping early_stopping_patience"
        " seed accelerator",
        train_size="Fraction of the cells to train on.",
        early_stopping="Stop when the validation ELBO no longer improves.",
        early_stopping_patience="Epochs without an improvement after which training stops early.",
    ),
)
def train(
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Raw counts.")],
    output: NewModel,
    setup: Any,
    network: Any,
    training: Any,
    overwrite: Overwrite = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train SCVI on an h5ad of raw counts and save the model."""
    from vivace.model import SCVI
    from vivace.store.folder import check_place

    _use_threads(threads)
    check_place(output, overwrite)
    adata = _read(data)
    SCVI.setup_anndata(adata, **setup)
    _use_seed(training["seed"])
    model = SCVI(adata, **network)
    model.train(**training, progress=not quiet)
    model.save(output, overwrite=overwrite)
    typer.echo(f"{model.summary}\nWrote {output}")


@command()
def embed(
    model: ModelFolder,
    data: Counts,
    output: NewFile,
    key_added: KeyAdded = "X_scVI",
    threads: Threads = None,
) -> None:
    """Write IN.h5ad with the latent representation of its cells in obsm."""
    from vivace.model import load
    from vivace.store.folder import write_h5ad

    _use_threads(threads)
    loaded = load(model)
    adata = _read(data)
    adata.obsm[key_added] = loaded.get_latent_representation(adata)
    write_h5ad(adata, output)
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
    output: NewFile,
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
    from vivace.store.arrays import check_free
    from vivace.store.folder import check_place, write_h5ad
    from vivace.transfer.labels import CHECKS, read_labels

    # Refuse invalid arguments before training.
    _use_threads(threads)
    if output.suffix != ".h5ad":
        raise OptionError(f"{output} must end in .h5ad.")
    check_free(output, overwrite)
    if save_model is not None:
        check_place(save_model, overwrite)
    if not key_added:
        raise OptionError("--key-added must be a name.")
    limits = {name: labelling[name] for name in ("max_novelty", "min_probability")}
    for name, value in limits.items():
        CHECKS[name](name, value)
    for name, value in {"reference": reference, **limits}.items():
        if value is not None and labels_key is None:
            flag = name.replace("_", "-")
            raise OptionError(f"--{flag} applies to labels; give --labels-key too.")
    _use_seed(training["seed"])
    loaded = load(model)
    labelled = None if reference is None else _read(reference)
    if labels_key is not None:
        source = loaded.adata if labelled is None else labelled
        if source is None:
            raise OptionError(
                f"{model} holds no data to take labels from; give --reference too, or save the "
                "reference model with its data."
            )
        read_labels(source, labels_key)
    query = _read(data)

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
    write_h5ad(query, output)
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
    output: NewMatrix,
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
    from vivace.model import load
    from vivace.store.arrays import check_free, dense_file

    _use_threads(threads)
    check_free(_check_suffix(output), overwrite)
    loaded = load(model)
    adata = _read(data)
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
    with dense_file(output, adata.obs, var, n_rows, overwrite) as x:
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
    output: NewMatrix,
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

    from vivace.model import load
    from vivace.store.arrays import check_free, write_anndata
    from vivace.validate import COUNT

    _use_threads(threads)
    n_samples = sampling.pop("n_samples")
    COUNT("n_samples", n_samples)
    check_free(_check_suffix(output), overwrite)
    loaded = load(model)
    adata = _read(data)
    # h5ad cannot hold a third dimension, so further samples become further rows.
    rows = np.tile(np.arange(adata.n_obs), n_samples)
    sampling["transform_batch"] = _transform(loaded, transform_batch, transform)
    counts = loaded.posterior_predictive_sample(adata, rows, **sampling, silent=quiet)
    obs = adata.obs.iloc[rows].copy()
    if n_samples > 1:
        obs["draw"] = np.repeat(np.arange(n_samples), adata.n_obs)
        obs.index = obs.index.astype(str) + "-" + obs["draw"].astype(str)
    samples = AnnData(counts, obs=obs, var=adata.var.loc[list(loaded.schema.genes)])
    write_anndata(samples, output, overwrite)
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
    from vivace.model import load
    from vivace.pl import volcano as draw_volcano
    from vivace.report import need_plotting
    from vivace.store.arrays import check_free
    from vivace.store.table import check_table, write_table

    _use_threads(threads)
    check_table(output, overwrite)
    if volcano is not None:
        need_plotting()
        if volcano.suffix not in (".png", ".pdf", ".svg"):
            raise OptionError(f"{volcano} must end in .png, .pdf or .svg.")
        if comparison["mode"] == "vanilla":
            raise OptionError(
                "--volcano shows called genes, but mode 'vanilla' calls none; drop one of the two."
            )
        check_free(volcano, overwrite)
        volcano.parent.mkdir(parents=True, exist_ok=True)
    loaded = load(model)
    result = loaded.differential_expression(_read(data), **comparison, silent=quiet)
    write_table(result, output, index_label="gene")
    if volcano is not None:
        draw_volcano(result, result["comparison"].iloc[0], save=volcano)
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


def _read(path: Path) -> AnnData:
    """The AnnData in the h5ad file ``path``."""
    from anndata import OldFormatWarning, read_h5ad

    from vivace.store.folder import UNREADABLE

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OldFormatWarning)  # old files can still be read
            return read_h5ad(path)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}; check the path.") from error
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as h5ad ({error}); check the file.") from error


def _check_suffix(path: Path) -> Path:
    """``path``, whose ending must name one of AnnData's two formats."""
    if path.suffix not in (".h5ad", ".zarr"):
        raise OptionError(f"{path} must end in .h5ad or .zarr, which sets the format.")
    return path


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
