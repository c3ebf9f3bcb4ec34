"""Where query cells are placed, and that reference cells do not move."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from mapping_cases import (
    ARCHITECTURES,
    COVARIATES,
    DECAYING,
    GOLDEN,
    NO_STEP,
    SEES,
    SHORT,
    answers,
    assert_same_answers,
    changed,
    get_state,
    hashes,
    mapped,
    of_batch,
    trained_on,
    with_lane,
    without,
)

from vivace import SCVI, LinearSCVI, model
from vivace.errors import VivaceWarning

# ---- weights before training -------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_new_rows_stand_in_the_block_of_their_covariate_at_its_mean(reference, query, name):
    old, now = get_state(reference(name)), get_state(mapped(query, reference(name)))
    for entry, value in now.items():
        new = ARCHITECTURES[name].new.get(entry, {})
        if entry in ("library_mean", "library_variance"):
            value = value[:2]  # of known batches
        np.testing.assert_array_equal(without(value, new), old[entry].numpy(), err_msg=entry)
        for row, known in new.items():
            mean = old[entry][known].double().mean(0).numpy()
            np.testing.assert_allclose(value[row].numpy(), mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["seeing", "two layers, deep", "linear"])
def test_a_new_category_starts_half_way_between_the_known_ones(reference, query, name):
    """In the first linear map of the encoder: the mean over b0 and b1 of the same cell."""
    query_model = mapped(query, reference(name))
    first = []
    for batch in ("b0", "b1", "a8"):
        query.obs["batch"] = batch
        cells = query_model._read(query).gather(np.arange(5))
        covariates = query_model.module._covariates(cells)
        with torch.no_grad():
            first.append(query_model.module.encoder._first(cells.counts, *covariates, "auto"))
    torch.testing.assert_close(first[2], (first[0] + first[1]) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("options", [SEES, {}], ids=["encoder sees", "encoder blind"])
def test_one_batch_gets_its_zeros_in_every_layer(tiny, query, n_layers, options):
    adata = of_batch(tiny, "b0")
    trained = trained_on(adata, options={**options, "n_layers": n_layers}, batch_key="batch")
    query.obs["batch"] = np.where(np.arange(60) % 2, "b0", "a9")
    query_model = mapped(query, trained, freeze_batchnorm_decoder=True)
    starts = {"decoder.linears.0.weight": 3, "decoder.linears.1.weight": 8}
    if options:
        starts |= {"encoder.linears.0.weight": 30, "encoder.linears.1.weight": 8}
    old, now = get_state(trained), get_state(query_model)
    starts = {entry: start for entry, start in starts.items() if entry in now}
    for entry, value in now.items():
        if entry in starts:
            assert len(value) == starts[entry] + 2
            assert (value[starts[entry] :] == 0).all()
            value = value[: starts[entry]]
        np.testing.assert_array_equal(value.numpy(), old[entry].numpy(), err_msg=entry)
    before = hashes(query_model)
    query_model.train(**DECAYING)
    assert changed(before, query_model) == {(entry, start + 1) for entry, start in starts.items()}
    assert_same_answers(query_model, trained, adata)


@pytest.mark.parametrize(
    ("option", "table"),
    [
        ({"batch_representation": "embedding"}, "batch_embedding.weight"),
        ({"dispersion": "gene-batch"}, "log_theta"),
    ],
)
def test_tables_of_one_batch_repeat_its_row(tiny, query, option, table):
    trained = trained_on(of_batch(tiny, "b0"), options={**SEES, **option}, batch_key="batch")
    query.obs["batch"] = np.where(np.arange(60) % 2, "b0", "a9")
    row = get_state(trained)[table]
    assert len(row) == 1
    assert torch.equal(get_state(mapped(query, trained))[table], torch.cat([row, row]))


def test_a_covariate_of_one_category_gets_columns_between_the_others(tiny, query):
    adata = with_lane(tiny())
    adata.obs["donor"] = "d1"
    trained = trained_on(adata, **COVARIATES)
    query.obs["donor"] = np.where(np.arange(60) % 2, "d1", "d00")
    query_model = mapped(query, trained, freeze_batchnorm_decoder=True)
    for entry, start in (("encoder.linears.0.weight", 31), ("decoder.linears.0.weight", 4)):
        old, new = get_state(trained)[entry], get_state(query_model)[entry]
        # b0 b1 l0 l1 become b0 b1 (a8 a9) d1 (d00) l0 l1 (k)
        kept = [*range(start + 2), start + 6, start + 7]
        assert torch.equal(new[kept], old)
        assert (new[[start + 4, start + 5]] == 0).all()
        torch.testing.assert_close(new[start + 8], old[start + 2 :].mean(0))
    query_model.train(**DECAYING)
    assert_same_answers(query_model, trained, adata)


def test_the_library_prior_of_a_new_batch_is_that_of_its_cells(reference, query):
    library = np.log(query.X.toarray().sum(1))
    result = get_state(mapped(query, reference("latent library")))
    for code, batch in ((2, "a8"), (3, "a9")):
        cells = library[(query.obs["batch"] == batch).to_numpy()]
        np.testing.assert_allclose(result["library_mean"][code], cells.mean(), rtol=1e-5)
        np.testing.assert_allclose(result["library_variance"][code], cells.var(), rtol=1e-4)


@pytest.mark.parametrize("batches", [("x",), ("b1", "x"), ("b1",)], ids=str)
def test_a_latent_library_takes_a_query_without_cells_of_every_known_batch(
    tiny, reference, batches
):
    query_model = mapped(of_batch(tiny, *batches), reference("latent library"))
    known, result = get_state(reference("latent library")), get_state(query_model)
    for name in ("library_mean", "library_variance"):
        assert torch.equal(result[name][:2], known[name])
        assert torch.isfinite(result[name]).all()
    query_model.train(**DECAYING)
    assert np.isfinite(query_model.get_elbo(seed=0))


# ---- cells of the reference --------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_before_training_all_combinations_have_the_numbers_of_the_reference(reference, query, name):
    """This would detect blocks of covariates that are mixed up."""
    trained = reference(name)
    query_model = mapped(query, trained, freeze_batchnorm_decoder=True)
    query_model.train(**NO_STEP)  # a model that was not trained answers nothing
    others = trained.adata.copy()
    rng = np.random.default_rng(1)
    for column in ("batch", "donor", "lane"):
        others.obs[column] = rng.permutation(others.obs[column].to_numpy())
    assert_same_answers(query_model, trained, trained.adata)
    assert_same_answers(query_model, trained, others)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reference_cells_stay_where_they_are(reference, query, name):
    trained = reference(name)
    query_model = mapped(query, trained)
    query_model.train(**DECAYING)
    np.testing.assert_allclose(
        query_model.get_latent_representation(trained.adata),
        trained.get_latent_representation(),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["seeing", "blind", "linear"])
def test_reference_cells_move_once_the_expression_is_trained(reference, query, name):
    trained = reference(name)
    query_model = mapped(query, trained, freeze_expression=False)
    query_model.train(**DECAYING)
    moved = (
        query_model.get_latent_representation(trained.adata) - trained.get_latent_representation()
    )
    assert np.abs(moved).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "sees"),
    {
        "linear": False,
        "nb_batch_embedding": True,
        "nb_gene_batch_covariates": True,
        "nb_gene_label_size_factor": False,
        "poisson_logistic_normal": False,
        "zinb_default": False,
        "zinb_gene_cell": False,
        "zinb_latent_library": False,
    }.items(),
)
def test_cells_of_a_model_of_scvi_tools_keep_its_numbers(name, sees):
    """The mapped model still reproduces scvi-tools' results for the cells of the reference."""
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    cls = LinearSCVI if name == "linear" else SCVI
    query = adata[::4].copy()
    for column, new in (("batch", "new"), ("donor", "d9")):
        query.obs[column] = query.obs[column].astype(object)
        query.obs.iloc[::2, query.obs.columns.get_loc(column)] = new
    if sees:
        query_model = cls.load_query_data(query, GOLDEN / name, freeze_batchnorm_decoder=True)
    else:
        with pytest.warns(VivaceWarning, match="does not see"):
            query_model = cls.load_query_data(query, GOLDEN / name, freeze_batchnorm_decoder=True)
    assert query_model.schema.batches[-1] == "new"
    assert not query_model.is_trained
    query_model.train(**DECAYING)
    expected = np.load(GOLDEN / name / "expected.npz")
    mean, variance = query_model.get_latent_representation(adata, return_dist=True)
    np.testing.assert_allclose(mean, expected["qz_mean"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance, expected["qz_var"], rtol=1e-4, atol=1e-4)
    assert_same_answers(query_model, cls.load(GOLDEN / name), adata)


def test_a_second_query_leaves_the_cells_of_the_first(reference, query, tiny):
    first = mapped(query, reference("seeing"))
    first.train(**DECAYING)
    later = of_batch(tiny, "z", "a8")
    later.obs["donor"] = "m"
    second = SCVI.load_query_data(later, first)
    assert second.schema.batches == ("b0", "b1", "a8", "a9", "z")
    assert second.schema.categories == (("d0", "d1", "d2", "d00", "m"), ("l0", "l1", "k"))
    old, new = get_state(first), get_state(second)
    for entry, start in (("encoder.linears.0.weight", 31), ("decoder.linears.0.weight", 4)):
        z, m = start + 4, start + 9  # after b0 b1 a8 a9, and after d0 d1 d2 d00
        np.testing.assert_array_equal(without(new[entry], [z, m]), old[entry])
        torch.testing.assert_close(new[entry][z], old[entry][start : start + 4].mean(0))
        torch.testing.assert_close(new[entry][m], old[entry][start + 4 : start + 8].mean(0))
    second.train(**DECAYING)
    for adata in (reference("seeing").adata, query):
        np.testing.assert_allclose(
            second.get_latent_representation(adata),
            first.get_latent_representation(adata),
            rtol=1e-5,
            atol=1e-6,
        )


# ---- cells of the query ------------------------------------------------------


@pytest.mark.parametrize(("name", "moves"), [("seeing", True), ("mapping", True), ("blind", False)])
def test_cells_of_a_new_category_move_where_the_encoder_sees_it(reference, query, name, moves):
    query_model = mapped(query, reference(name))
    with torch.no_grad():
        before = query_model.module.encode(
            query_model._read(query).gather(np.arange(60))
        ).z.mean.numpy()
    query_model.train(**DECAYING)
    new = query.obs["batch"].isin(["a8", "a9"]) | (query.obs["donor"] == "d00")
    new |= query.obs["lane"] == "k"
    moved = np.abs(query_model.get_latent_representation() - before).max(1)
    assert bool(moved[new].min() > 1e-5) is moves
    assert moved[~new].max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "mapping"},
        SEES,
        {},
        {**SEES, "batch_representation": "embedding"},
        {"batch_representation": "embedding"},
        {"n_layers": 2},
        {**SEES, "n_layers": 2, "deeply_inject_covariates": False},
    ],
    ids=str,
)
def test_there_is_a_warning_exactly_where_no_cell_moves(tiny, query, options):
    trained = trained_on(tiny(), options=options, batch_key="batch")
    still = mapped(query, trained)
    still.train(**NO_STEP)
    positions = still.get_latent_representation()
    for flags in (
        {},
        {"unfrozen": True},
        {"freeze_expression": False},
        {"freeze_decoder_first_layer": False},
        {"freeze_batchnorm_decoder": True},
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            query_model = SCVI.load_query_data(query, trained, **flags)
        query_model.train(**SHORT, batch_size=20)
        distance = np.abs(query_model.get_latent_representation() - positions).max()
        assert distance == 0 or distance > 1e-3
        assert len(caught) == (distance == 0)
        for warning in caught:
            assert "moves no cell" in str(warning.message)
            assert "preset='mapping'" in str(warning.message)
            assert warning.filename == __file__


@pytest.mark.parametrize("batches", [("b0", "b1"), ("b1",)], ids=str)
def test_there_is_no_warning_where_nothing_is_new(tiny, batches):
    """Labels that are not used do not count as new."""
    trained = trained_on(tiny(), options={}, batch_key="batch", labels_key="cell_type")
    # a warning would be an error
    query_model = SCVI.load_query_data(of_batch(tiny, *batches), trained)
    assert query_model.schema.batches == ("b0", "b1")


def test_an_encoder_that_sees_is_not_called_blind_because_of_a_label(reference, tiny):
    """Nor is the preset advised that the reference was made with."""
    query = with_lane(tiny(seed=2))
    query.obs["cell_type"] = "Unknown"
    # a warning would be an error
    query_model = SCVI.load_query_data(query, reference("gene-label"))
    assert query_model.schema.labels == ("B", "NK", "T", "Unknown")


def test_a_query_without_a_known_batch_is_mapped(tiny, reference):
    query_model = SCVI.load_query_data(of_batch(tiny, "p", "q", "r"), reference("seeing"))
    assert query_model.schema.batches == ("b0", "b1", "p", "q", "r")
    query_model.train(**DECAYING)
    assert all(
        np.isfinite(value).all() for value in answers(query_model, query_model.adata).values()
    )


def test_a_mapped_model_answers_without_counts_and_across_old_and_new_batches(reference, query):
    query_model = mapped(query, reference("seeing"))
    query_model.train(**DECAYING)
    expected = query_model.get_latent_representation()
    shown = [
        query_model.get_normalized_expression(
            transform_batch=b, n_samples=1, seed=0, return_numpy=True
        )
        for b in ("b0", "a8")
    ]
    assert np.abs(shown[0] - shown[1]).max() > 1e-6
    query_model.minify_adata()
    np.testing.assert_array_equal(query_model.get_latent_representation(), expected)


# ---- whatever form the query has ---------------------------------------------


def test_new_categories_come_after_the_known_ones_in_their_own_order(reference, query):
    query.obs["batch"] = (
        query.obs["batch"].astype("category").cat.set_categories(["a9", "a8", "b1", "b0", "unused"])
    )
    schema = SCVI.load_query_data(query, reference("seeing")).schema
    assert schema.batches == ("b0", "b1", "a9", "a8")
    assert schema.categories == (("d0", "d1", "d2", "d00"), ("l0", "l1", "k"))


@pytest.mark.parametrize("labels", ["no column", "missing values"])
@pytest.mark.parametrize("name", ["seeing", "gene-batch", "linear"])
def test_a_query_needs_no_labels(reference, query, name, labels):
    query.obs["cell_type"] = np.nan
    if labels == "no column":
        del query.obs["cell_type"]
    query_model = mapped(query, reference(name))
    query_model.train(**DECAYING)
    assert np.isfinite(query_model.get_latent_representation()).all()


def add_genes(adata: AnnData) -> AnnData:
    more = adata[:, :2].copy()
    more.var_names = ["more0", "more1"]
    result = anndata.concat([adata.copy(), more], axis=1, merge="same")
    result.layers["twice"] = result.X * 2
    return result


def test_the_order_of_genes_and_further_genes_do_not_matter(reference, query):
    shuffled = query[:, np.random.default_rng(0).permutation(30)].copy()
    for adata in (shuffled, add_genes(shuffled)):
        query_model = SCVI.load_query_data(adata, reference("seeing"))
        np.testing.assert_array_equal(query_model._own_source().counts.toarray(), query.X.toarray())


@pytest.mark.parametrize("is_view", [True, False])
def test_only_the_genes_of_the_reference_are_left_if_that_is_asked_for(reference, query, is_view):
    parent = add_genes(query[:, ::-1])
    adata = parent[10:] if is_view else parent
    counts = adata.to_df()
    query_model = SCVI.load_query_data(adata, reference("seeing"), inplace_subset_query_vars=True)
    assert query_model.adata is adata
    assert np.shares_memory(query_model._own_source().counts.data, adata.X.data)  # held once
    assert parent.shape == ((60, 32) if is_view else (60, 30))
    assert adata.var_names.tolist() == [f"gene{i}" for i in range(30)]
    np.testing.assert_array_equal(adata.to_df(), counts[adata.var_names])
    np.testing.assert_array_equal(adata.to_df("twice"), 2 * counts[adata.var_names])
    query_model.train(**DECAYING)
    assert query_model.get_latent_representation().shape == (adata.n_obs, 3)


# ---- whatever form the reference has -----------------------------------------


@pytest.mark.parametrize("kind", [Path, str])
def test_a_folder_is_as_good_as_the_model(reference, query, tmp_path, kind):
    trained = reference("seeing")
    trained.save(tmp_path / "reference")
    from_memory = mapped(query, trained)
    from_folder = SCVI.load_query_data(query, kind(tmp_path / "reference"))
    assert changed(hashes(from_memory), from_folder) == set()
    assert from_folder.schema == from_memory.schema
    from_folder.train(**DECAYING)
    from_memory.train(**DECAYING)
    assert changed(hashes(from_memory), from_folder) == set()


def test_a_model_read_by_its_class_maps_as_one_read_by_name(reference, query, tmp_path):
    reference("linear").save(tmp_path / "reference")
    result = mapped(query, model.load(tmp_path / "reference"))
    assert type(result) is LinearSCVI
    assert changed(hashes(mapped(query, reference("linear"))), result) == set()


def test_in_scvi_tools_format_a_mapped_model_gives_the_same_numbers(reference, query, tmp_path):
    query_model = mapped(query, reference("two layers, deep"))
    query_model.train(**DECAYING)
    with pytest.warns(VivaceWarning, match="does not record which weights of a query"):
        query_model.save(tmp_path / "mapped", format="scvi-tools")
    assert_same_answers(SCVI.load(tmp_path / "mapped"), query_model, query)
