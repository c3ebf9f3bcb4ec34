from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

import vivace
from vivace import SCVI, cli

GOLDEN = Path(__file__).parents[1] / "golden"
QUICK = ("--max-epochs", "2", "--n-hidden", "16", "--n-latent", "3", "--quiet")


def test_train_embed_and_info(vivace_says, cells, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out" / "embedded.h5ad"
    said = vivace_says(
        "train", cells, "-o", model, "--batch-key", "batch", "--labels-key", "cell_type", *QUICK
    )
    assert said[0] == 0
    assert said[2] == ""
    assert "trained: 2 epochs on 54 cells" in said[1]
    assert f"Wrote {model}" in said[1]

    said = vivace_says("embed", model, cells, "-o", out)
    assert said == (0, f"Wrote {out}: 60 cells, obsm['X_scVI']\n", "")
    embedded, before = anndata.read_h5ad(out), anndata.read_h5ad(cells)
    expected = SCVI.load(model).get_latent_representation(before)
    np.testing.assert_array_equal(embedded.obsm["X_scVI"], expected)
    np.testing.assert_array_equal(embedded.X.toarray(), before.X.toarray())
    assert [p.name for p in out.parent.iterdir()] == ["embedded.h5ad"]

    code, text, err = vivace_says("info", model)
    assert (code, err) == (0, "")
    for part in ("zinb", "30 genes", "obs['batch']", "obs['cell_type']", "2 epochs"):
        assert part in text


def test_train_passes_every_option_on(vivace_says, tiny, tmp_path):
    adata = tiny()
    adata.layers["counts"] = adata.X * 0.5
    adata.write_h5ad(tmp_path / "cells.h5ad")
    options = ["--layer", "counts", "--allow-non-integer", "--size-factor-key", "depth"]
    options += ["--categorical-covariate-key", "donor", "--categorical-covariate-key", "cell_type"]
    options += ["--continuous-covariate-key", "age", "--encode-covariates", "--n-layers", "2"]
    options += ["--dropout-rate", "0.2", "--gene-likelihood", "nb", "--recipe", "scvi-tools"]
    options += ["--train-size", "0.5", "--batch-size", "16", "--accelerator", "cpu", *QUICK]
    code, _, err = vivace_says("train", tmp_path / "cells.h5ad", "-o", tmp_path / "m", *options)
    assert (code, err) == (0, "")
    model = SCVI.load(tmp_path / "m")
    declared = model.schema.declarations
    assert (declared.layer, declared.size_factor_key) == ("counts", "depth")
    assert declared.categorical_covariate_keys == ("donor", "cell_type")
    assert declared.continuous_covariate_keys == ("age",)
    assert declared.allow_non_integer
    assert model.config == vivace.config.ModelConfig(
        n_hidden=16,
        n_latent=3,
        n_layers=2,
        dropout_rate=0.2,
        gene_likelihood="nb",
        encode_covariates=True,
    )
    assert len(model.train_indices) == 30
    assert model.history["lr"].tolist() == [1e-3] * 2


def test_the_command_line_gives_what_python_gives(vivace_says, cells, tmp_path):
    vivace_says("train", cells, "-o", tmp_path / "m", "--batch-key", "batch", "--seed", 7, *QUICK)
    adata = anndata.read_h5ad(cells)
    SCVI.setup_anndata(adata, batch_key="batch")
    vivace.settings.seed = 7
    model = SCVI(adata, n_hidden=16, n_latent=3)
    model.train(2, seed=7, progress=False)
    np.testing.assert_array_equal(
        SCVI.load(tmp_path / "m").get_latent_representation(adata),
        model.get_latent_representation(),
    )


def test_a_model_is_overwritten_on_request(vivace_says, vivace_refuses, cells, saved):
    before = (saved / "weights.safetensors").read_bytes()
    vivace_refuses(("train", cells, "-o", saved, *QUICK), str(saved), "exists", "overwrite")
    assert (saved / "weights.safetensors").read_bytes() == before
    assert vivace_says("train", cells, "-o", saved, "--overwrite", *QUICK)[0] == 0
    assert (saved / "weights.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--batch-key", "batsh"), ("'batsh'", "did you mean 'batch'?")),
        (("--layer", "counts"), ("layers", "'counts'")),
        (("--size-factor-key", "donor"), ("obs['donor']", "numbers")),
        (("--continuous-covariate-key", "donor"), ("obs['donor']", "numbers")),
        (("--gene-likelihood", "gamma"), ("gene_likelihood", "'zinb'", "'gamma'")),
        (("--n-latent", "0"), ("n_latent", "at least 1")),
        (("--dropout-rate", "1.5"), ("dropout_rate", "1.5")),
        (("--recipe", "slow"), ("recipe", "'fast'", "'slow'")),
        (("--train-size", "0"), ("train_size", "above 0")),
        (("--batch-size", "0"), ("batch_size", "at least 1")),
        (("--max-epochs", "0"), ("max_epochs", "at least 1")),
        (("--max-steps", "0"), ("max_steps", "at least 1")),
        (("--early-stopping", "--train-size", "1"), ("early_stopping", "validation cells")),
        (("--seed", "-1"), ("seed", "-1")),
        (("--accelerator", "abacus"), ("accelerator", "'cpu'", "'abacus'")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_refused_option_is_one_sentence(vivace_refuses, cells, tmp_path, options, parts):
    vivace_refuses(("train", cells, "-o", tmp_path / "model", *QUICK, *options), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_negative_counts_are_refused(vivace_refuses, tiny, tmp_path):
    adata = tiny()
    adata.X.data[3] = -2
    adata.write_h5ad(tmp_path / "cells.h5ad")
    vivace_refuses(
        ("train", tmp_path / "cells.h5ad", "-o", tmp_path / "m"), "negative value -2", "'cell0'"
    )


@pytest.mark.parametrize("command", ["train", "embed", "map", "express", "sample", "de"])
def test_a_file_that_is_no_h5ad_is_refused(vivace_refuses, saved, tmp_path, command):
    (tmp_path / "in.h5ad").touch()
    first = [] if command == "train" else [saved]
    out = tmp_path / {"train": "model2", "de": "out.csv"}.get(command, "out.h5ad")
    vivace_refuses(
        (command, *first, tmp_path / "in.h5ad", "-o", out),
        f"{tmp_path / 'in.h5ad'} cannot be read as h5ad: it is empty",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "model"]


@pytest.mark.parametrize("command", ["embed", "info"])
def test_a_missing_model_is_refused(vivace_refuses, cells, tmp_path, command):
    rest = [cells, "-o", tmp_path / "out.h5ad"] if command == "embed" else []
    missing = tmp_path / "no-model"
    vivace_refuses((command, missing, *rest), "no model folder", str(missing), "check the path")
    tmp_path.joinpath("folder").mkdir()
    vivace_refuses((command, tmp_path / "folder", *rest), "no model.json", "not a vivace model")


def test_a_damaged_model_is_refused(vivace_refuses, saved):
    (saved / "weights.safetensors").write_bytes(b"")
    vivace_refuses(("info", saved), "weights.safetensors", "damaged", "save the model again")


def test_embedding_cells_without_the_genes_is_refused(vivace_refuses, saved, tiny, tmp_path):
    adata = tiny()
    adata.var_names = [f"ENSG{i}" for i in range(30)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    vivace_refuses(
        ("embed", saved, tmp_path / "cells.h5ad", "-o", tmp_path / "out.h5ad"),
        "lack 30 of the model's 30 genes",
        "'gene0'",
    )


def test_a_path_that_cannot_be_written_is_refused(vivace_refuses, saved, cells):
    # a file where a folder should be: fails for every user, root too
    vivace_refuses(("embed", saved, cells, "-o", cells / "out.h5ad"), "cells.h5ad")
    vivace_refuses(("train", cells, "-o", cells / "model", *QUICK), "cells.h5ad")


@pytest.mark.parametrize(
    "arguments",
    [("train",), ("train", "in.h5ad"), ("embed", "m", "in.h5ad"), ("trian",), ("info", "m", "--x")],
    ids=" ".join,
)
def test_wrong_usage_ends_with_code_2(vivace_says, arguments):
    code, out, err = vivace_says(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: vivace" in err
    assert "Traceback" not in err


def test_help_is_the_docstring_of_each_command(vivace_says):
    code, out, _ = vivace_says("--help")
    assert code == 0
    for command in ("demo", "train", "embed", "info"):
        assert command in out
    _, out, _ = vivace_says("train", "--help")
    assert "Train SCVI on an h5ad of raw counts and save the model." in out
    assert "--batch-key" in out


COMMANDS = get_command(cli.app).commands
API = {  # the functions that a command passes options to, and how many options
    "train": (24, SCVI.setup_anndata, SCVI, SCVI.train),
    "map": (
        8,
        SCVI.prepare_query_anndata,
        SCVI.load_query_data,
        SCVI.train,
        SCVI.transfer_labels,
    ),
    "express": (5, SCVI.get_normalized_expression),
    "sample": (3, SCVI.posterior_predictive_sample),
    "de": (13, SCVI.differential_expression),
    "convert": (1, SCVI.save),
}
RENAMED = {
    "gene": "gene_list",
    "to": "format",
    "categorical_covariate_key": "categorical_covariate_keys",
    "continuous_covariate_key": "continuous_covariate_keys",
}
OWN = {  # of the command line, though a parameter of Python has the same name
    "overwrite",  # a flag of every command that writes
    "transform_batch",  # may be repeated, and is joined with --transform
    "key_added",  # a key of obsm
    "reference",  # a file
}


@pytest.mark.parametrize("command", API)
def test_options_have_the_defaults_of_the_python_api(command):
    number, *functions = API[command]
    known = {}
    for function in functions:
        known |= inspect.signature(function).parameters
    compared = 0
    for option in COMMANDS[command].params:
        parameter = known.get(RENAMED.get(option.name, option.name))
        if option.name in OWN or parameter is None or parameter.default is parameter.empty:
            continue
        compared += 1
        assert str(option.default) == str(parameter.default), option.name  # 1 is read from "1"
    assert compared == number


def test_help_is_the_text_of_the_python_docstring():
    for option in COMMANDS["train"].params:
        if option.name in ("batch_key", "size_factor_key", "labels_key"):
            assert option.help
            assert option.help in " ".join(
                inspect.getdoc(SCVI.setup_anndata).replace("``", "").split()
            )


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'numba', 'anndata', 'pandas')))\n"
        "from vivace.cli import main\n"
        f"for command in ([], *([c] for c in {list(COMMANDS)})):\n"
        "    sys.argv = ['vivace', *command, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, command\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: vivace") == 1 + len(COMMANDS) == 10


# ---- scvi-tools' format -------------------------------------------------------


def test_convert_there_and_back(vivace_says, trained, saved, tmp_path):
    code, out, _ = vivace_says("convert", saved, "-o", tmp_path / "theirs", "--to", "scvi-tools")
    assert code == 0
    assert "for scvi-tools" in out
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["model.pt"]
    assert vivace_says("convert", tmp_path / "theirs", "-o", tmp_path / "ours")[0] == 0
    again = SCVI.load(tmp_path / "ours", trained.adata)
    assert np.array_equal(again.get_latent_representation(), trained.get_latent_representation())


def test_convert_refuses_an_unknown_format(vivace_refuses, saved, tmp_path):
    command = ("convert", saved, "-o", tmp_path / "x", "--to", "onnx")
    vivace_refuses(command, "format", "'onnx'")
    assert not (tmp_path / "x").exists()


def test_info_says_what_scvi_tools_saved(vivace_says):
    code, out, _ = vivace_says("info", GOLDEN / "linear")
    assert code == 0
    assert "LinearSCVI: nb likelihood" in out


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_express_writes_what_python_gives(vivace_says, cells, fitted, tmp_path, suffix):
    out = tmp_path / "out" / f"expression{suffix}"
    options = ("--transform-batch", "b0", "--transform-batch", "b1", "--transform", "donor=d1")
    options += ("--library-size", "10000", "--batch-size", "7", "--quiet")
    code, said, err = vivace_says("express", fitted, cells, "-o", out, *options)
    assert (code, said, err) == (0, f"Wrote {out}: 60 cells x 30 genes\n", "")
    written = anndata.read_zarr(out) if suffix == ".zarr" else anndata.read_h5ad(out)
    adata = anndata.read_h5ad(cells)
    expected = SCVI.load(fitted).get_normalized_expression(
        adata, transform_batch={"batch": ["b0", "b1"], "donor": "d1"}, library_size=1e4
    )
    np.testing.assert_allclose(written.X, expected, rtol=1e-5)
    assert list(written.obs_names) == list(adata.obs_names)
    assert list(written.obs["donor"]) == list(adata.obs["donor"])
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_express_writes_the_genes_asked_for_in_their_order(vivace_says, cells, fitted, tmp_path):
    options = ("--gene", "gene7", "--gene", "gene2", "--library-size", "latent", "--quiet")
    assert vivace_says("express", fitted, cells, "-o", tmp_path / "e.h5ad", *options)[0] == 0
    written = anndata.read_h5ad(tmp_path / "e.h5ad")
    assert list(written.var_names) == ["gene7", "gene2"]
    expected = SCVI.load(fitted).get_normalized_expression(
        anndata.read_h5ad(cells), gene_list=["gene7", "gene2"], library_size="latent"
    )
    np.testing.assert_allclose(written.X, expected, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_sample_writes_one_sample_after_the_other(vivace_says, cells, fitted, tmp_path, suffix):
    out = tmp_path / f"samples{suffix}"
    options = ("--n-samples", "2", "--seed", "3", "--transform-batch", "b1", "--quiet")
    code, said, err = vivace_says("sample", fitted, cells, "-o", out, *options)
    assert (code, said, err) == (0, f"Wrote {out}: 120 cells x 30 genes\n", "")
    written = anndata.read_zarr(out) if suffix == ".zarr" else anndata.read_h5ad(out)
    rows = np.tile(np.arange(60), 2)
    expected = SCVI.load(fitted).posterior_predictive_sample(
        anndata.read_h5ad(cells), rows, transform_batch="b1", seed=3
    )
    np.testing.assert_array_equal(written.X.toarray(), expected.toarray())
    assert written.obs["draw"].tolist() == [0] * 60 + [1] * 60
    assert written.obs_names[60] == "cell0-1"
    assert list(written.obs["donor"][60:]) == list(written.obs["donor"][:60])


def test_existing_output_is_replaced_only_on_request(
    vivace_says, vivace_refuses, cells, fitted, tmp_path
):
    out = tmp_path / "s.h5ad"
    for command in ("sample", "express"):
        out.write_bytes(b"mine")
        vivace_refuses((command, fitted, cells, "-o", out), "exists")
        assert out.read_bytes() == b"mine"
        assert vivace_says(command, fitted, cells, "-o", out, "--overwrite", "--quiet")[0] == 0
        assert anndata.read_h5ad(out).shape == (60, 30)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("express", "-o", "x.csv"), (".h5ad or .zarr",)),
        (("sample", "-o", "x.csv"), (".h5ad or .zarr",)),
        (("express", "-o", "x.h5ad", "--gene", "gen7"), ("gen7", "gene7")),
        (("express", "-o", "x.h5ad", "--library-size", "mean"), ("library_size", "latent")),
        (("express", "-o", "x.h5ad", "--transform", "donor"), ("COLUMN=CATEGORY",)),
        (("sample", "-o", "x.h5ad", "--transform", "donor=d9"), ("d9", "'d1'")),
        (("sample", "-o", "x.h5ad", "--n-samples", "0"), ("n_samples", "at least 1")),
    ],
)
def test_express_and_sample_refuse_wrong_options(
    vivace_refuses, cells, fitted, tmp_path, options, parts, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command, *rest = options
    vivace_refuses((command, fitted, cells, *rest), *parts)
    assert not (tmp_path / "x.h5ad").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_without_a_zarr_store_is_never_replaced(vivace_refuses, cells, fitted, tmp_path):
    mine = tmp_path / "mine.zarr"
    mine.mkdir()
    (mine / "data.txt").write_text("precious")
    for command in ("sample", "express"):
        vivace_refuses((command, fitted, cells, "-o", mine, "--overwrite"), "without a zarr store")
    assert (mine / "data.txt").read_text() == "precious"


def test_an_unknown_gene_is_named_whatever_var_holds(vivace_refuses, tiny, fitted, tmp_path):
    adata = tiny()
    adata.var["highly_variable"] = True
    adata.write_h5ad(tmp_path / "with_var.h5ad")
    arguments = (fitted, tmp_path / "with_var.h5ad", "-o", tmp_path / "x.h5ad", "--gene", "gen7")
    vivace_refuses(("express", *arguments), "gen7", "gene7")


# ---- de ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_de_writes_what_python_gives(vivace_says, cells, fitted, tmp_path, suffix):
    out, picture = tmp_path / "out" / f"table{suffix}", tmp_path / "volcano.png"
    options = ("--groupby", "cell_type", "--seed", "3", "--delta", "0.1", "--fdr-target", "0.2")
    options += ("--batch-correction", "--test-mode", "two", "--volcano", picture, "--quiet")
    code, said, err = vivace_says("de", fitted, cells, "-o", out, *options)
    assert (code, err) == (0, "")
    expected = SCVI.load(fitted).differential_expression(
        anndata.read_h5ad(cells),
        groupby="cell_type",
        seed=3,
        delta=0.1,
        fdr_target=0.2,
        batch_correction=True,
        test_mode="two",
    )
    written = pd.read_csv(out, sep="," if suffix == ".csv" else "\t", index_col="gene")
    pd.testing.assert_frame_equal(
        written, expected, check_dtype=False, check_names=False, check_categorical=False
    )
    assert len(said.splitlines()) == expected["comparison"].nunique() + 1
    assert said.splitlines()[-1] == f"Wrote {out}"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_de_takes_queries_and_the_vanilla_mode(vivace_says, cells, fitted, tmp_path):
    out = tmp_path / "table.csv"
    options = ("--idx1", "donor == 'd0'", "--idx2", "donor == 'd1'", "--mode", "vanilla")
    code, said, _ = vivace_says("de", fitted, cells, "-o", out, *options, "--quiet")
    assert code == 0
    assert "proba_m1" in pd.read_csv(out).columns
    assert said.startswith("group1 vs group2: ")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("-o", "x.xlsx", "--groupby", "cell_type"), ("x.xlsx", ".csv or .tsv")),
        (("-o", "x.csv", "--groupby", "cell_typ"), ("cell_typ", "did you mean 'cell_type'?")),
        (("-o", "x.csv"), ("groupby=",)),
        (("-o", "x.csv", "--idx1", "nothing ==="), ("nothing ===",)),
        (("-o", "x.csv", "--groupby", "cell_type", "--mode", "chang"), ("chang",)),
    ],
)
def test_de_refuses_wrong_options(
    vivace_refuses, cells, fitted, tmp_path, options, parts, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    vivace_refuses(("de", fitted, cells, *options), *parts)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".csv" or p.name.startswith(".")]


def test_de_keeps_an_existing_table(vivace_refuses, vivace_says, cells, fitted, tmp_path):
    out = tmp_path / "table.csv"
    out.write_text("precious")
    arguments = ("de", fitted, cells, "-o", out, "--groupby", "cell_type", "--quiet")
    vivace_refuses(arguments, str(out))
    assert out.read_text() == "precious"
    assert vivace_says(*arguments, "--overwrite")[0] == 0
    assert out.read_text().startswith("gene,")


@pytest.fixture
def mapping(vivace_says, cells, tmp_path):
    """The folder of a reference for mapping, and the h5ad of a query with fewer genes."""
    options = ("--batch-key", "batch", "--preset", "mapping", *QUICK)
    assert vivace_says("train", cells, "-o", tmp_path / "reference", *options)[0] == 0
    query = anndata.read_h5ad(cells)[:20, :27].copy()
    query.obs["batch"] = "new"
    query.write_h5ad(tmp_path / "query.h5ad")
    return tmp_path / "reference", tmp_path / "query.h5ad"


def test_map_writes_what_python_gives(vivace_says, cells, mapping, tmp_path):
    reference, query = mapping
    out, saved = tmp_path / "out" / "mapped.h5ad", tmp_path / "mapped"
    options = ("--labels-key", "cell_type", "--reference", cells, "--save-model", saved)
    code, said, err = vivace_says(
        "map", reference, query, "-o", out, *options, "--seed", "3", "--quiet"
    )
    assert (code, err) == (0, "")
    assert "27 of 30 genes of the reference are in the query" in said
    assert f"Wrote {out}: 20 cells" in said
    written, model = anndata.read_h5ad(out), SCVI.load(saved)
    assert written.shape == (20, 27)
    assert written.uns["query_genes"]["present"] == 27
    aligned = anndata.read_h5ad(query)
    SCVI.prepare_query_anndata(aligned, model)
    np.testing.assert_allclose(
        written.obsm["X_scVI"], model.get_latent_representation(aligned), rtol=1e-5, atol=1e-6
    )
    result = model.transfer_labels(aligned, "cell_type", anndata.read_h5ad(cells), seed=3)
    assert list(written.obs["transferred_cell_type"]) == list(result["label"])
    for name in ("probability", "novelty"):
        np.testing.assert_allclose(
            written.obs[f"transferred_cell_type_{name}"], result[name], rtol=1e-4
        )


def test_map_refuses_before_it_trains(vivace_refuses, cells, mapping, tmp_path):
    reference, query = mapping
    out = tmp_path / "out.h5ad"
    (tmp_path / "fitted").mkdir()
    command = ("map", reference, query, "-o", out)
    vivace_refuses((*command, "--labels-key", "cell_type"), "holds no data", "--reference")
    labels = ("--reference", cells, "--labels-key")
    vivace_refuses((*command, *labels, "cell_typ"), "'cell_typ'", "did you mean 'cell_type'")
    vivace_refuses((*command, "--reference", cells), "--labels-key")
    for option in ("--max-novelty", "--min-probability"):
        vivace_refuses((*command, option, "0.5"), option, "--labels-key")
        vivace_refuses((*command, *labels, "cell_type", option, "95"), "at most 1")
    vivace_refuses((*command, "--key-added", ""), "--key-added must be a name")
    vivace_refuses((*command, "--min-overlap", "0.95"), "27 of the reference's 30 genes")
    vivace_refuses(
        ("map", reference, query, "-o", tmp_path / "out.csv"), "must end in .h5ad or .zarr"
    )
    vivace_refuses((*command, "--save-model", reference), "is an input of the command")
    vivace_refuses((*command, "--save-model", tmp_path / "fitted"), "exists")
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_console_that_lacks_letters(tiny, tmp_path, encoding, locale):
    adata = tiny()
    adata.obs["batch"] = np.where(adata.obs["batch"] == "b0", "λ→β", "größe")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict", "LC_ALL": locale}
    main = [sys.executable, "-c", "from vivace.cli import main; main()"]

    def run(*arguments):
        done = subprocess.run(
            [*main, *arguments], env=environment, cwd=tmp_path, capture_output=True
        )
        # click writes UTF-8 where the console says ASCII
        letters = "utf-8" if encoding == "ascii" else encoding
        return done.returncode, (done.stdout + done.stderr).decode(letters)

    trained = ("train", "cells.h5ad", "-o", "model", "--batch-key", "batch", "--max-epochs", "1")
    for arguments in (trained, ("info", "model")):
        code, text = run(*arguments)
        assert code == 0, text
        assert "größe" in text
        assert (r"\u03bb\u2192\u03b2" if encoding == "cp1252" else "λ→β") in text
    code, text = run("train", "cells.h5ad", "-o", "other", "--batch-key", "größe")
    assert code == 2
    assert "größe" in text or r"gr\xf6\xdfe" in text


@pytest.mark.parametrize("arguments", [("--version",), ("--version", "train")])
def test_the_version_is_shown(vivace_says, arguments):
    assert vivace_says(*arguments) == (0, f"vivace {vivace.__version__}\n", "")
