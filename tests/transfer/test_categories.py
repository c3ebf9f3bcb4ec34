"""A category is the same in every form that files give it, wherever it is named."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from mapping_cases import trained_on

from vivace import SCVI

FORMS = {
    "integers": lambda codes: codes,
    "doubles, as R has": lambda codes: codes.astype(float),
    "32-bit floats": lambda codes: codes.astype(np.float32),
    "small integers": lambda codes: codes.astype(np.int8),
    "text": lambda codes: codes.astype(str),
    "text of integers, as objects": lambda codes: codes.astype(str).astype(object),
    "nullable integers": lambda codes: pd.array(codes, "Int64"),
    "nullable floats": lambda codes: pd.array(codes, "Float64"),
    "categories of integers": pd.Categorical,
    "categories of doubles": lambda codes: pd.Categorical(codes.astype(float)),
    "categories of text": lambda codes: pd.Categorical(codes.astype(str)),
    "objects": lambda codes: codes.astype(object),
}
TRUTHS = {
    "bools": lambda codes: codes == 1,
    "nullable bools": lambda codes: pd.array(codes == 1, "boolean"),
    "text": lambda codes: (codes == 1).astype(str),
    "R's text": lambda codes: np.where(codes == 1, "TRUE", "FALSE"),
    "categories of bools": lambda codes: pd.Categorical(codes == 1),
}
REFERENCES = ("integers", "doubles, as R has", "text")
PAIRS = [(a, b, FORMS) for a in REFERENCES for b in FORMS if a != b] + [
    (a, b, TRUTHS) for a in TRUTHS for b in TRUTHS if {a, b} != {"text", "R's text"} and a != b
]
UNWRITABLE = {"nullable floats", "objects"}  # by anndata
CODES = np.arange(60) % 2


@pytest.fixture(scope="module")
def references(tiny, tmp_path_factory):
    """A function that trains a model on a form once, and saves and loads it."""
    made = {}

    def load(form, forms):
        name = f"{form} {len(forms)}"
        if name not in made:
            adata = tiny()
            adata.obs["batch"] = forms[form](CODES)
            path = tmp_path_factory.mktemp("models") / "model"
            trained_on(adata, batch_key="batch").save(path)
            made[name] = SCVI.load(path)
        return made[name]

    return load


@pytest.mark.parametrize(
    ("reference", "form", "forms"), PAIRS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_query_in_another_form_has_the_batches_of_the_reference(
    tiny, references, tmp_path, reference, form, forms
):
    model = references(reference, forms)
    known = model.schema.batches
    query = tiny()
    query.obs["batch"] = forms[form](CODES)
    same = tiny()
    same.obs["batch"] = forms[reference](CODES)
    expected = model.get_normalized_expression(same)
    queries = [query]
    if form not in UNWRITABLE:
        query.copy().write_h5ad(tmp_path / "query.h5ad")
        queries.append(anndata.read_h5ad(tmp_path / "query.h5ad"))
    for data in queries:
        assert model.get_normalized_expression(data).equals(expected)
        assert SCVI.load_query_data(data, model).schema.batches == known
        value = data.obs["batch"].iloc[1]
        decoded = model.get_normalized_expression(same, transform_batch=value)
        assert decoded.equals(model.get_normalized_expression(same, transform_batch=known[1]))


def test_new_categories_of_another_type_are_known_afterwards(tiny, references, tmp_path):
    query = tiny()
    query.obs["batch"] = [str(k) for k in np.arange(60) % 3]
    model = SCVI.load_query_data(query, references("integers", FORMS))
    assert model.schema.batches == (0, 1, "2")
    model.train(max_steps=2, accelerator="cpu", progress=False)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", query)
    expected = loaded.get_normalized_expression(transform_batch="2")
    for value in (2, 2.0, np.int8(2), "2"):
        assert loaded.get_normalized_expression(transform_batch=value).equals(expected)
    query.obs["batch"] = np.arange(60) % 3.0
    assert loaded.get_latent_representation(query).shape == (60, 3)
    assert SCVI.load_query_data(query, loaded).schema.batches == (0, 1, "2")
