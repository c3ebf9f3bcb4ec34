"""What a message recommends works as it stands: each piece of code in one is executed here.

:func:`test_code_in_messages_is_executed` collects those pieces from the source. A new one needs a
test below, or an entry in ``ELSEWHERE`` or ``NO_ADVICE``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import vivace
from vivace import SCVI, LinearSCVI
from vivace.distributions import Poisson
from vivace.errors import VivaceError, VivaceWarning
from vivace.ops import CountHeads, SparseCounts, count_nll

SOURCE = Path(vivace.__file__).parent
TESTS = Path(__file__).parent
CODE = re.compile(
    r"[A-Za-z_][\w.\[\]']*(?:\([^()]*(?:\([^()]*\)[^()]*)*\)(?:\.\w+\(\))?)"  # calls
    r"|(?<![\w-])[A-Za-z_]\w*=\S*"  # arguments
)

# by a test in another file
ELSEWHERE = {
    "adata.copy()": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "model.to_device('cpu')": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "train(accelerator=...)": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "model.view_anndata_setup()": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "model.get_latent_representation()": (
        "test_drop_in.py::test_what_took_the_place_of_a_former_name_works"
    ),
    "vivace.datasets.pbmc3k()": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "progress=False": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "anndata.AnnData(zarr.open_array({})[:])": "store/test_anndata_read.py::test_an_array_of_zarr_"
    "is_made_an_anndata_as_the_message_says",
    "anndata.AnnData(anndata.io.read_elem({}))": "store/test_anndata_read.py::test_sampled_counts_"
    "on_disk_are_named",
    "early_stopping=": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "max_epochs=": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "plan_kwargs=": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "plan_kwargs={'lr':": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "plan_kwargs={'n_epochs_kl_warmup':": (
        "test_drop_in.py::test_what_took_the_place_of_a_former_name_works"
    ),
    "plan_kwargs={'n_steps_kl_warmup':": (
        "test_drop_in.py::test_what_took_the_place_of_a_former_name_works"
    ),
    "plan_kwargs={'weight_decay':": (
        "test_drop_in.py::test_what_took_the_place_of_a_former_name_works"
    ),
    "progress=": "test_drop_in.py::test_what_took_the_place_of_a_former_name_works",
    "replace({}, {})": "transfer/test_remedies.py::test_the_type_that_is_advised_makes_categories_"
    "those_of_the_reference",
    "min_overlap={}": "transfer/test_remedies.py::test_the_min_overlap_that_is_suggested_is_met_"
    "and_says_something",
    "gene_key={}": "transfer/test_remedies.py::test_the_gene_key_that_is_advised_makes_the_query_"
    "one_that_is_mapped",
    "prepare_query_anndata(query, model)": "transfer/test_remedies.py::test_the_gene_key_that_is_"
    "advised_makes_the_query_one_that_is_mapped",
    "np.rint({})": "data/test_count_values.py::test_counts_that_are_rounded_are_restored_by_the_line_in_the_message",
    "np.rint({}.data)": "data/test_count_values.py::test_counts_that_are_rounded_are_restored_by_the_line_in_the_message",
    "rint()": "data/test_count_values.py::test_counts_that_are_rounded_are_restored_by_the_line_in_the_message",
    "filled(0)": "data/test_structure.py::test_masked_values_are_not_taken_for_counts",
    "astype(bool)": "test_selection.py::test_a_mask_of_numbers_is_refused_with_the_line_that_makes_"
    "it_one",
    "fillna(False)": "test_selection.py::test_missing_values_are_filled_in_as_the_message_says",
    "reindex({})": "test_selection.py::test_a_mask_of_more_cells_is_cut_as_the_message_says",
    "set_axis({}.index.astype(str))": "test_selection.py::test_cells_that_are_called_by_numbers",
    "to_numpy()": "test_selection.py::test_cells_that_are_called_by_numbers",
    "adata.obs_names.isin({})": "test_selection.py::test_names_are_refused_with_the_mask_that_they_"
    "mean",
    "plan_kwargs={'max_kl_weight':": "train/test_activity.py::test_a_collapsed_latent_space_is_"
    "named_and_the_fix_works",
    "anndata.AnnData(counts)": "test_anndata_arguments.py::test_an_anndata_is_made_of_a_matrix",
    "anndata.AnnData({})": "test_anndata_arguments.py::test_an_anndata_is_made_of_a_matrix",
    "scanpy.read_10x_h5({})": "store/test_anndata_read.py::test_a_10x_file_is_converted_as_the_"
    "message_says",
    "write_h5ad(FILE)": "store/test_anndata_read.py::test_a_10x_file_is_converted_as_the_message_says",
    "scanpy.read_10x_mtx({})": "store/test_anndata_read.py::test_a_10x_folder_is_converted_as_the_"
    "message_says",
    "scanpy.read_csv({}{})": "store/test_anndata_read.py::test_a_table_is_converted_as_the_message_"
    "says",
    "delimiter='\\t'": "store/test_anndata_read.py::test_a_table_is_converted_as_the_message_says",
    "map(bytes.decode, na_action='ignore')": "store/test_anndata_write.py::test_a_column_that_"
    "cannot_be_held_is_refused_and_the_fix_works",
    "str.replace('\\0', '')": "store/test_anndata_write.py::test_a_column_that_cannot_be_held_is_"
    "refused_and_the_fix_works",
    "columns.duplicated()": "store/test_anndata_write.py::test_two_columns_of_a_name_are_made_one_"
    "as_the_message_says",
    "save_anndata=False)": "store/test_anndata_write.py::test_a_model_refuses_to_be_saved_with_such_"
    "a_column",
}
# in R, or in packages that are not installed with the tests
NOT_HERE = {
    "Convert({}, dest = 'h5ad')",
    "SCVI.convert_legacy_save({}, NEW_FOLDER)",
    "anndata.AnnData(pandas.read_parquet(FILE))",
    "scanpy.read_loom({})",
    "spatialdata.read_zarr({})",
}
# not advice, but a description of what was given, or of how something is called
NO_ADVICE = {
    "LinearSCVI(bias=True)",
    "change_fn(scale1, scale2, pseudocounts)",
    "delta=None",
    "device={}",
    "exp(logits)",
    "log_metrics(metrics, step)",
    "log_variational=True",
    "n_epochs_kl_warmup':",
    "return_mean=False)",
    "transfer_batch=False",
    "use_layer_norm={}",
    "var_activation={}",
    "backend={}",
}
ADVICE: dict[str, Callable[[Any], None]] = {}  # the test of each piece of code


def advises(*code: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a test of advice."""

    def register(test: Callable[[Any], None]) -> Callable[[Any], None]:
        ADVICE.update(dict.fromkeys(code, test))
        return test

    return register


class Case:
    """Data and models for the tests, and what messages say."""

    def __init__(self, tiny: Callable[..., AnnData], folder: Path, patch: pytest.MonkeyPatch):
        self.tiny, self.folder, self.patch = tiny, folder, patch

    def model(self, adata: AnnData | None = None, cls: Any = SCVI, **options: Any) -> Any:
        """An untrained model."""
        adata = self.set_up() if adata is None else adata
        return cls(adata, **{"n_hidden": 8, "n_latent": 2} | options)

    def set_up(self, adata: AnnData | None = None, **columns: Any) -> AnnData:
        adata = self.tiny() if adata is None else adata
        SCVI.setup_anndata(adata, **columns or {"batch_key": "batch"})
        return adata

    def trained(self, adata: AnnData | None = None, **options: Any) -> Any:
        model = self.model(adata, **options)
        model.train(1, batch_size=20, seed=0, progress=False)
        return model

    def refused(self, call: Callable[[], Any], *parts: str) -> str:
        """The message of the refusal, which holds the parts."""
        with pytest.raises(VivaceError) as caught:
            call()
        message = str(caught.value)
        for part in parts:
            assert part in message
        return message


@pytest.fixture
def case(tiny, tmp_path, monkeypatch) -> Case:
    return Case(tiny, tmp_path, monkeypatch)


# ---- counts and columns ----------------------------------------------------------------


def follow_line(message: str, start: str, **names: Any) -> dict[str, Any]:
    """Run the statement that begins with ``start`` in the message."""
    line = message[message.index(start) :].rstrip(".").removesuffix("; ")
    exec(line, names)
    return names


def empty_cells(adata: AnnData, genes: slice) -> AnnData:
    """Cells 5 and 9 have no counts in these genes."""
    x = adata.X.toarray()
    x[[5, 9], genes] = 0
    adata.X = sp.csr_matrix(x)
    return adata


@advises("isin({})", "columns.astype(str)")
def _follow_lines_about_columns(case: Case) -> None:
    adata = case.tiny()
    adata.obs["batch"] = np.where(np.arange(60) < 7, "NA", adata.obs["batch"])
    with pytest.warns(VivaceWarning, match="reads like a missing value") as caught:
        SCVI.setup_anndata(adata, batch_key="batch")
    line = str(caught[0].message).partition("drop those cells with ")[2].removesuffix(".")
    kept = eval(line, {"adata": adata})
    assert kept.n_obs == 53
    SCVI.setup_anndata(kept, batch_key="batch")

    adata = case.tiny()
    adata.obs[7] = 1.0
    model = case.trained(case.set_up(adata))
    message = case.refused(lambda: model.save(case.folder / "m", save_anndata=True), "adata.obs")
    line = message.partition("rename it with ")[2].partition(" before setup_anndata")[0]
    exec(line, {"adata": adata})
    model = case.trained(case.set_up(adata))
    model.save(case.folder / "m", save_anndata=True)
    assert SCVI.load(case.folder / "m").adata.obs["7"].eq(1.0).all()


FORMS = {
    "CSR": sp.csr_matrix, "CSC": sp.csc_matrix, "CSR array": sp.csr_array,
    "dense": lambda x: x.toarray(), "integers": lambda x: x.toarray().astype(np.int32),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [None, "counts"])
def test_cells_without_counts_are_dropped_as_advised(case, form, layer):
    adata = empty_cells(case.tiny(), slice(None))
    counts = FORMS[form](adata.X)
    if layer is None:
        adata.X = counts
    else:
        adata.layers[layer] = counts
        adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)  # says nothing about the counts
    call = lambda: SCVI.setup_anndata(adata, layer=layer)  # noqa: E731
    message = case.refused(call, "2 of 60 cells have no counts", "drop them with adata = adata[")
    kept = follow_line(message, "adata = ", adata=adata, np=np)["adata"]
    assert list(kept.obs_names) == [n for n in adata.obs_names if n not in ("cell5", "cell9")]
    SCVI.setup_anndata(kept, layer=layer)
    assert SCVI(kept)._own_source().n_cells == 58


@advises("list(model.schema.genes)", "adata[np.asarray({}.{}.sum(1)).ravel()", "copy()")
def _drop_cells_of_a_query(case: Case) -> None:
    for layer in (None, "counts"):
        adata = case.tiny()
        adata.layers["counts"] = adata.X.copy()
        part = adata[:, 29:9:-1].copy()
        model = case.trained(case.set_up(part, batch_key="batch", layer=layer))
        query = case.tiny(seed=3)
        query.layers["counts"] = empty_cells(query, slice(10, 30)).X.copy()
        if layer is not None:
            query.X = query.X * 0.5
        for ask in (
            model.get_latent_representation,
            lambda query, model=model: SCVI.load_query_data(query, model),
        ):
            message = case.refused(lambda ask=ask, query=query: ask(query), "2 of 60 cells have no")
            kept = follow_line(message, "adata = ", adata=query, np=np, model=model)["adata"]
            assert kept.n_obs == 58
            ask(kept)


def test_without_any_counts_no_cell_is_to_be_dropped(case):
    adata = case.tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    case.refused(lambda: SCVI.setup_anndata(adata), "No cell has counts in X", "layer='counts'")
    SCVI.setup_anndata(adata, layer="counts")


@advises("allow_non_integer=True", "setup_anndata(adata, allow_non_integer=True)")
def _allow_fractions(case: Case) -> None:
    fractions, adata = case.tiny(seed=2), case.tiny()
    fractions.X = fractions.X * 0.9
    case.refused(
        lambda: SCVI.setup_anndata(fractions), "pass allow_non_integer=True to setup_anndata"
    )
    model = case.trained(case.set_up(adata))
    said = "make the model again after setup_anndata(adata, allow_non_integer=True)"
    case.refused(lambda: model.get_elbo(fractions), said)
    SCVI.setup_anndata(adata, allow_non_integer=True)
    again = SCVI(adata, n_hidden=8, n_latent=2)
    again.train(1, progress=False)
    assert np.isfinite(again.get_elbo(fractions, seed=0))


@advises("layer={}", "layer=", "adata.raw.to_adata()")
def _name_the_layer(case: Case) -> None:
    adata = case.tiny()
    adata.raw = adata.copy()
    adata.layers["log"] = adata.X.log1p()
    case.refused(lambda: SCVI.setup_anndata(adata, layer="log"), "leave out layer=")
    SCVI.setup_anndata(adata)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.layers["log"]
    case.refused(lambda: SCVI.setup_anndata(adata), "pass layer='counts'")
    SCVI.setup_anndata(adata, layer="counts")
    del adata.layers["counts"]
    case.refused(lambda: SCVI.setup_anndata(adata), "start from adata.raw.to_adata()")
    SCVI.setup_anndata(adata.raw.to_adata())


def test_a_layer_of_a_query_takes_the_place_that_is_advised(case):
    """``layer=`` is no argument of a question."""
    model = case.trained()
    query = case.tiny(seed=2)
    query.layers["counts"] = query.X.copy()
    query.X = query.X.log1p()
    message = case.refused(lambda: model.get_elbo(query), "set adata.X = adata.layers['counts'])")
    exec(re.search(r"set (adata\.X = .+?)\)\.", message)[1], {"adata": query})
    assert np.isfinite(model.get_elbo(query, seed=0))
    adata = case.tiny()
    adata.layers["counts"] = adata.X.copy()
    model = case.trained(case.set_up(adata, batch_key="batch", layer="counts"))
    query.layers["counts"] = query.X.log1p()
    message = case.refused(lambda: model.get_elbo(query), "set adata.layers['counts'] = adata.X)")
    exec(re.search(r"set (adata\.layers.+?)\)\.", message)[1], {"adata": query})
    assert np.isfinite(model.get_elbo(query, seed=0))


@advises("adata.var_names_make_unique()")
def _make_names_unique(case: Case) -> None:
    adata = case.tiny()
    adata.var_names = ["gene0", *adata.var_names[:-1]]
    message = case.refused(lambda: SCVI.setup_anndata(adata), "call adata.var_names_make_unique()")
    exec(re.search(r"call (.+?\(\))", message)[1], {"adata": adata})
    SCVI.setup_anndata(adata)


@advises("notna()")
def _drop_cells_without_a_value(case: Case) -> None:
    adata = case.tiny()
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    adata.obs.iloc[3, 0] = None
    call = lambda: SCVI.setup_anndata(adata, batch_key="batch")  # noqa: E731
    message = case.refused(call, "drop those cells with adata[")
    kept = eval(re.search(r"adata\[.+\.copy\(\)", message)[0], {"adata": adata})
    SCVI.setup_anndata(kept, batch_key="batch")
    assert kept.n_obs == 59


@advises("astype(str)")
def _make_one_type(case: Case) -> None:
    adata = case.tiny()
    adata.obs["batch"] = pd.Series([1, "b"] * 30, index=adata.obs_names, dtype=object)
    call = lambda: SCVI.setup_anndata(adata, batch_key="batch")  # noqa: E731
    message = case.refused(call, "make them one type with adata.obs['batch'] = ")
    follow_line(message, "adata.obs['batch'] = ", adata=adata)
    call()


@advises("adata.X.copy()", "layer='counts')")
def _keep_counts_in_a_layer(case: Case) -> None:
    adata = case.set_up()
    model = case.trained(adata)
    before = adata.X.data.copy()
    np.log1p(adata.X.data, out=adata.X.data)
    case.refused(model.get_elbo, "restore them, keep them in a layer (adata.layers['counts'] = ")
    adata.X.data[:] = before
    adata.layers["counts"] = adata.X.copy()
    SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = case.trained(adata)
    np.log1p(adata.X.data, out=adata.X.data)
    assert np.isfinite(model.get_elbo(seed=0))


@advises("adata.to_memory()")
def _read_into_memory(case: Case) -> None:
    case.tiny().write_h5ad(case.folder / "cells.h5ad")
    adata = anndata.read_h5ad(case.folder / "cells.h5ad", backed="r")
    message = case.refused(lambda: SCVI.setup_anndata(adata), "adata = adata.to_memory() first")
    names = {"adata": adata}
    exec(re.search(r"adata = adata\.to_memory\(\)", message)[0], names)
    SCVI.setup_anndata(names["adata"])


@advises("setup_anndata(adata, layer=...)")
def _declare_the_layer(case: Case) -> None:
    full = case.tiny()
    adata = AnnData(obs=full.obs, var=full.var, layers={"counts": full.X})
    message = "set adata.X to the counts, or declare their layer with setup_anndata(adata, layer=.."
    case.refused(lambda: SCVI.setup_anndata(adata), message)
    SCVI.setup_anndata(adata, layer="counts")
    model = case.trained()
    case.refused(lambda: model.get_elbo(adata), message)
    adata.X = adata.layers["counts"]
    assert np.isfinite(model.get_elbo(adata, seed=0))


@advises("SCVI.setup_anndata(adata, ...)")
def _set_up_first(case: Case) -> None:
    adata = case.tiny()
    for cls in (SCVI, LinearSCVI):
        adata.uns.pop("vivace", None)
        case.refused(lambda cls=cls: cls(adata), "call SCVI.setup_anndata(adata, ...) first")
        SCVI.setup_anndata(adata, batch_key="batch")
        cls(adata)


# ---- models ------------------------------------------------------------------------------


@advises("log_variational=False")
def _no_logarithm(case: Case) -> None:
    adata = case.tiny()
    adata.X = adata.X.toarray() - 0.01
    case.set_up(adata, allow_non_integer=True)
    normal = {"gene_likelihood": "normal"}
    case.refused(lambda: case.model(adata, **normal), "use log_variational=False")
    case.trained(adata, **normal, log_variational=False)


@advises("train()")
def _train_first(case: Case) -> None:
    model = case.model()
    case.refused(model.get_elbo, "call train() first")
    assert "not trained: call train()" in model.summary
    case.refused(lambda: SCVI.load_query_data(case.tiny(), model), "call train() first")
    model.train(1, progress=False)
    model.get_elbo()
    SCVI.load_query_data(case.tiny(), model)


@advises("adata=")
def _pass_data(case: Case) -> None:
    model = case.trained()
    model.save(case.folder / "model")
    bare = SCVI.load(case.folder / "model")
    case.refused(bare.get_elbo, "pass adata= to load or to the method")
    bare.get_elbo(adata=case.tiny())
    SCVI.load(case.folder / "model", adata=case.tiny()).get_elbo()
    adata = model.adata
    model.minify_adata()
    case.refused(model.get_elbo, "pass data with counts as adata=")
    model.get_elbo(adata=adata)
    said = "save the model and load it with its former data as adata="
    case.refused(lambda: model.train(1), said)
    model.save(case.folder / "small")
    SCVI.load(case.folder / "small", adata=adata).train(1, progress=False)
    changed = case.set_up()
    model = case.trained(changed)
    changed.obs["batch"] = changed.obs["batch"].to_numpy()[::-1].copy()
    case.refused(model.get_elbo, "or pass adata= to read it again")
    model.get_elbo(adata=changed)


@advises("setup_anndata(adata, {}=...)")
def _declare_the_key(case: Case) -> None:
    for key, column, option in (
        ("batch_key", "batch", {"dispersion": "gene-batch"}),
        ("labels_key", "cell_type", {"dispersion": "gene-label"}),
        ("batch_key", "batch", {"batch_representation": "embedding"}),
    ):
        adata = case.tiny()
        SCVI.setup_anndata(adata)
        call = lambda adata=adata, option=option: case.model(adata, **option)  # noqa: E731
        case.refused(call, f"declare it with setup_anndata(adata, {key}=...)")
        SCVI.setup_anndata(adata, **{key: column})
        call()


def test_a_device_and_a_layer_norm_as_advised(case):
    model = case.model()
    case.refused(lambda: model.to_device("nowhere"), "use for example 'cpu'")
    model.to_device("cpu")
    linear = lambda norm: case.model(cls=LinearSCVI, use_layer_norm=norm)  # noqa: E731
    case.refused(lambda: linear("both"), "use 'none' or 'encoder'")
    linear("none"), linear("encoder")


@advises("transform_batch={'column':")
def _name_the_column(case: Case) -> None:
    model = case.trained(case.set_up(categorical_covariate_keys=["donor"]))
    ask = model.get_normalized_expression
    case.refused(lambda: ask(transform_batch="d0"), "transform_batch={'column': 'category'}")
    ask(transform_batch={"donor": "d0"})


@advises("backend='reference'")
def _take_the_reference(case: Case) -> None:
    counts = SparseCounts.from_dense(torch.ones(2, 3, dtype=torch.float64))
    hidden, weight = torch.ones(2, 1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    heads = CountHeads(weight, weight[0], log_theta_g=weight[0])

    def loss(backend: Any, likelihood: Any = "nb") -> Any:
        library = torch.zeros(2, dtype=torch.float64)
        options = {"likelihood": likelihood, "backend": backend}
        return count_nll(counts, hidden, heads, library, **options)

    case.refused(lambda: loss("cpu"), "use backend='reference'")
    assert loss("reference").isfinite().all()
    case.refused(lambda: loss("cpu", "normal"), "use backend='reference'")
    assert loss("reference", "normal").isfinite().all()


@advises("validate_args=False")
def _do_not_check(case: Case) -> None:
    value, rate = torch.tensor([0.5]), torch.tensor([1.0])
    case.refused(lambda: Poisson(rate).log_prob(value), "or pass validate_args=False")
    assert Poisson(rate, validate_args=False).log_prob(value).isfinite()


# ---- training ----------------------------------------------------------------------------


@advises("lightning_fabric.loggers.CSVLogger('logs')", "on_epoch_end(model, row)")
def _give_objects(case: Case) -> None:
    case.patch.chdir(case.folder)
    model = case.model()
    said = "give an object, for example lightning_fabric.loggers.CSVLogger('logs')"
    case.refused(lambda: model.train(1, logger=True), said)
    import lightning_fabric.loggers

    logger = lightning_fabric.loggers.CSVLogger("logs")
    model.train(1, logger=logger, progress=False)

    class Lightning:
        __module__ = "lightning.callbacks"

    said = "give an object with on_epoch_end(model, row)"
    case.refused(lambda: model.train(1, callbacks=[Lightning()]), said)

    class Own:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def on_epoch_end(self, model: Any, row: dict[str, float]) -> None:
            self.rows.append(row)

    own = Own()
    model.train(1, callbacks=[own], progress=False)
    assert len(own.rows) == 1


def test_the_learning_rate_that_is_advised_trains(case):
    model = case.model()
    with torch.no_grad():
        model.module.decoder.scale.weight[0, 0] = float("nan")
    with pytest.warns(RuntimeWarning, match="half"):
        message = case.refused(lambda: model.train(1, progress=False), "train a new model")
    options = eval(f"dict({re.search(r'plan_kwargs={.+?}', message)[0]})")
    new = case.model()
    new.train(1, progress=False, **options)
    assert new.is_trained


@advises("train_size=0.9")
def _leave_validation_cells(case: Case) -> None:
    model, early = case.model(), {"early_stopping": True, "progress": False}
    case.refused(lambda: model.train(1, train_size=1.0, **early), "leave some with train_size=0.9")
    model.train(1, train_size=0.9, **early)


# ---- files -------------------------------------------------------------------------------


@advises("overwrite=True", "format='vivace'")
def _overwrite(case: Case) -> None:
    model = case.trained(var_activation="softplus")
    said = "save the model with format='vivace'"
    case.refused(lambda: model.save(case.folder / "model", format="scvi-tools"), said)
    model.save(case.folder / "model", format="vivace")
    case.refused(lambda: model.save(case.folder / "model"), "overwrite it (overwrite=True")
    model.save(case.folder / "model", overwrite=True)


@advises("out=")
def _write_to_a_path(case: Case) -> None:
    model = case.trained()
    case.patch.setattr("vivace.errors.find_spec", lambda name: None if name == "sparse" else 1)
    ask = model.posterior_predictive_sample
    case.refused(lambda: ask(n_samples=2), "or give out= a path")
    ask(n_samples=2, out=case.folder / "samples.zarr")
    assert (case.folder / "samples.zarr").exists()


# ---- comparisons -------------------------------------------------------------------------


@advises("groupby=", "idx1=", "idx2=", "weights='importance'", "mode='change'", "key_added={}")
def _compare_groups(case: Case) -> None:
    model = case.trained()

    def compare(**options: Any) -> Any:
        return model.differential_expression(**options, silent=True, n_samples_overall=50)

    said = "name a column of obs as groupby=, or cells as idx1= and idx2="
    case.refused(compare, said)
    groups = {"groupby": "cell_type"}
    result = compare(**groups)
    compare(idx1=range(20), idx2=range(20, 60))
    weighting = {"importance_weighting_kwargs": {"n_mc_samples": 5}}
    case.refused(lambda: compare(**groups, **weighting), "weights='importance'; give that too")
    compare(**groups, **weighting, weights="importance")
    change = {"change_fn": lambda a, b, pseudocounts: np.log2(a + 1e-6) - np.log2(b + 1e-6)}
    vanilla = {"mode": "vanilla"}
    case.refused(lambda: compare(**groups, **change, **vanilla), "it needs mode='change'")
    compare(**groups, **change, mode="change")
    case.refused(lambda: compare(**groups, sample_key="donor", **vanilla), "needs mode='change'")
    one = {"comparison": "B vs Rest"}
    case.refused(lambda: vivace.pl.volcano(compare(**groups, **vanilla), **one), "mode='change'")
    vivace.pl.volcano(compare(**groups, mode="change"), **one)
    case.refused(lambda: compare(**groups, key_added=""), "choose another name")
    compare(**groups, key_added="result")
    result["is_de_fdr_0.05"], result["lfc_mean"] = True, 1.0
    result.attrs.clear()
    case.refused(lambda: vivace.pl.heatmap(result, model.adata), "give groupby=")
    vivace.pl.heatmap(result, model.adata, groupby="cell_type")


@advises("batch_correction=", "batch_correction=True")
def _correct(case: Case) -> None:
    groups = {"groupby": "cell_type", "silent": True, "n_samples_overall": 50}
    model = case.trained(case.set_up(categorical_covariate_keys=["donor"]))
    ask = model.differential_expression
    case.refused(lambda: ask(**groups, batch_correction=True), "as batch_correction=.")
    ask(**groups, batch_correction="donor")
    model = case.trained()
    ask = model.differential_expression
    batches = {"batchid1": ["b0"], "batchid2": ["b0"]}
    case.refused(lambda: ask(**groups, **batches), "needs batch_correction=True; give that too")
    ask(**groups, **batches, batch_correction=True)


@advises("pseudocounts=")
def _choose_pseudocounts(case: Case) -> None:
    model = case.trained()
    model.minify_adata()
    groups = {"groupby": "cell_type", "silent": True, "n_samples_overall": 50}
    ask = model.differential_expression
    message = case.refused(
        lambda: ask(**groups), "give a number as pseudocounts=, for example 1e-6"
    )
    ask(**groups, pseudocounts=float(message.removesuffix(".").split()[-1]))


@advises("return_numpy=False")
def _leave_one_out(case: Case) -> None:
    ask, several = case.trained().get_normalized_expression, {"n_samples": 2}
    both = {"return_numpy": False, "return_mean": False}
    case.refused(lambda: ask(**several, **both), "leave one of them out")
    for left in (several, several | {"return_mean": False}, several | {"return_numpy": False}):
        ask(**left)


def test_importance_weights_as_advised(case):
    ask = case.trained().get_normalized_expression
    case.refused(lambda: ask(n_mc_samples=5), "give weights='importance' too")
    case.refused(lambda: ask(weights="importance"), "as n_samples_overall, or leave weights out")
    ask(weights="importance", n_samples_overall=10, n_mc_samples=5)


# ---- queries -----------------------------------------------------------------------------


@advises("load_query_data(..., unfrozen=True)", "transfer_batch=True", "preset='mapping')",
         "load_query_data(query, model)", "reference={}", "save_anndata=True")  # fmt: skip
def _map_a_query(case: Case) -> None:
    plain = case.trained()
    frozen = SCVI.load_query_data(case.tiny(seed=2), plain, freeze_batchnorm_decoder=True)
    with pytest.warns(UserWarning, match="nothing to train") as told:
        frozen.train(1)
    assert "load_query_data(..., unfrozen=True)" in str(told[0].message)
    query = case.tiny(seed=2)
    SCVI.load_query_data(query, plain, unfrozen=True).train(1, progress=False)
    query.obs["batch"] = "new"
    call = lambda transfer: SCVI.load_query_data(query, plain, transfer_batch=transfer)  # noqa: E731
    case.refused(lambda: call(False), "or leave transfer_batch=True")
    with pytest.warns(UserWarning, match=r"SCVI\(adata, preset='mapping'\)"):
        call(True)
    reference = case.trained(preset="mapping")
    labels = lambda model, *rest: model.transfer_labels(*rest, "cell_type", silent=True)  # noqa: E731
    said = "map it first: SCVI.load_query_data(query, model), then train()"
    case.refused(lambda: labels(reference, query), said)
    mapped = SCVI.load_query_data(query, reference)
    mapped.train(1, progress=False)
    assert len(labels(mapped, None)) == 60
    reference.save(case.folder / "model")
    bare = SCVI.load(case.folder / "model")
    known = case.tiny(seed=4)
    said = "give its AnnData as reference=, or save the reference model with save_anndata=True"
    case.refused(lambda: labels(bare, known), said)
    bare.transfer_labels(known, "cell_type", reference=reference.adata, silent=True)
    reference.save(case.folder / "model", overwrite=True, save_anndata=True)
    assert len(labels(SCVI.load(case.folder / "model"), known)) == 60


@advises("adata=query")
def _ask_the_reference(case: Case) -> None:
    model, query = case.trained(case.set_up(continuous_covariate_keys=["age"])), case.tiny(seed=2)
    said = "pass adata=query to the methods of the reference"
    case.refused(lambda: SCVI.load_query_data(query, model), said)
    model.get_latent_representation(adata=query)


# ---- completeness ------------------------------------------------------------------------


def pieces_of_code(text: str) -> Iterator[str]:
    """Calls and arguments in the strings of a module that are sentences or clauses."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    skipped = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and isinstance(node.body[0], ast.Expr)
    }
    skipped |= {id(v) for node in nodes if isinstance(node, ast.JoinedStr) for v in node.values}
    for node in nodes:
        if id(node) in skipped or not isinstance(node, ast.Constant | ast.JoinedStr):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        values = [getattr(part, "value", None) if isinstance(part, ast.Constant) else "{}"
                  for part in parts]  # fmt: skip
        sentence = "".join(value for value in values if isinstance(value, str))
        if " " in sentence:
            for found in CODE.findall(sentence):
                yield found.rstrip(".,;") if "..." not in found else found


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(SOURCE.rglob("*.py")) if "cli" not in p.relative_to(SOURCE).parts[0]],
    ids=lambda path: path.stem,
)
def test_code_in_messages_is_executed(path):
    known = {*ADVICE, *ELSEWHERE, *NOT_HERE, *NO_ADVICE}
    found = set(pieces_of_code(path.read_text(encoding="utf-8")))
    assert found <= known, "these need a test of what they recommend"


def test_tests_elsewhere_are_there():
    for place in set(ELSEWHERE.values()):
        file, name = place.split("::")
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), place


def test_code_is_found():
    text = 'def f():\n    """Call g(x)."""\n    raise E(f"{x} fails; use adata.h(1).k() or y={z}.")'
    assert list(pieces_of_code(text)) == ["adata.h(1).k()", "y={}"]


@pytest.mark.parametrize("test", dict.fromkeys(ADVICE.values()), ids=lambda test: test.__name__)
def test_the_advice_works(test, case):
    test(case)
