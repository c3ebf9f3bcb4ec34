"""Whatever takes an AnnData refuses another container by one sentence, and its fix works."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import vivace
from vivace import SCVI, LinearSCVI
from vivace.errors import ArgumentTypeError
from vivace.validate import check_anndata


def entrances() -> dict[str, tuple[Any, str]]:
    """Every public function with an argument that is an AnnData: the function and the argument."""
    found = {}
    for owner in (SCVI, vivace.pl):
        for name in dir(owner):
            function = getattr(owner, name)
            if name.startswith("_") or not callable(function):
                continue
            for argument, parameter in inspect.signature(function).parameters.items():
                if "AnnData" in str(parameter.annotation):
                    found[f"{owner.__name__}.{name}({argument}=)"] = (function, argument)
    return found


class MuData:
    """Stands in for mudata's class: its name and ``mod`` are looked at."""

    def __init__(self, **modalities: anndata.AnnData) -> None:
        self.mod = modalities

    def __getitem__(self, name: str) -> anndata.AnnData:
        return self.mod[name]


class SpatialData:
    """Stands in for spatialdata's class: its name and ``tables`` are looked at."""

    def __init__(self, **tables: anndata.AnnData) -> None:
        self.tables = tables


ENTRANCES = entrances()


def test_the_entrances_are_found() -> None:
    assert len(ENTRANCES) > 20
    for name in ("setup_anndata(adata=)", "load(adata=)", "transfer_labels(reference=)"):
        assert f"SCVI.{name}" in ENTRANCES
    assert {argument for _, argument in ENTRANCES.values()} >= {"adata", "reference", "query"}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_mudata_is_told_to_give_one_modality(trained, saved, tiny, refused, entrance):
    function, argument = ENTRANCES[entrance]
    data = MuData(rna=tiny(), prot=tiny())
    said = (
        "AnnData, not MuData; give it one modality, such as mdata['rna'] (there are 'rna', 'prot')",
    )
    arguments: dict[str, Any] = {argument: data}
    values = {
        "self": trained,
        "adata": tiny(),
        "dir_path": saved,
        "model": trained,
        "reference_model": trained,
        "labels_key": "cell_type",
        "query": None,
        "z": np.zeros((60, 3)),
    }
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and name not in arguments and name in values:
            arguments[name] = values[name]
    if entrance.endswith("heatmap(adata=)"):
        arguments["result"] = trained.differential_expression(groupby="cell_type", seed=0)
    with refused(ArgumentTypeError, *said):
        function(**arguments)


@pytest.mark.parametrize("model", [SCVI, LinearSCVI])
def test_constructors_refuse_other_containers(tiny, refused, model):
    data = MuData(prot=tiny())
    with refused(ArgumentTypeError, f"{model.__name__} takes an AnnData, not MuData", "['prot']"):
        model(data)
    with refused(ArgumentTypeError, "setup_anndata takes an AnnData, not MuData"):
        model.setup_anndata(data)


def test_a_reference_without_data_refuses_other_containers(saved, tiny, refused):
    for data in (MuData(rna=tiny()), "cells.h5ad", np.ones((3, 2))):
        with refused(ArgumentTypeError, "an AnnData, not", type(data).__name__):
            SCVI.load(saved).get_latent_representation(data)


# ---- the fixes ------------------------------------------------------------------------


def get_fix(value: object) -> str:
    """The code in the message about a value."""
    with pytest.raises(ArgumentTypeError) as caught:
        check_anndata("it must be", value)
    code = re.search(
        r"(anndata\.\w+\([^)]*\)+|mdata\[.*?\]|sdata\.tables\[.*?\]|adata\.raw\.\w+\(\))",
        str(caught.value),
    )
    assert code is not None, caught.value
    return code[1]


@pytest.mark.parametrize("kind", ["text", "path"])
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr", "it's.h5ad"])
def test_a_path_is_read(tiny, tmp_path, kind, name):
    path = tmp_path / name
    vivace.store.arrays.write_anndata(tiny(), path)
    code = get_fix(str(path) if kind == "text" else path)
    SCVI.setup_anndata(eval(code, {"anndata": anndata}))


@pytest.mark.parametrize("kind", ["MuData", "SpatialData", "Raw", "list", "dict", "tuple"])
def test_a_part_of_a_container_is_given(tiny, kind):
    adata = tiny()
    adata.raw = adata
    values = {
        "MuData": MuData(atac=adata, rna=adata),
        "SpatialData": SpatialData(table=adata),
        "Raw": adata.raw,
    }
    if kind in values:
        value = values[kind]
        code = get_fix(value)
        space = {"mdata": value, "sdata": value, "adata": adata}
        SCVI.setup_anndata(eval(code, space))
        return
    parts = {"list": [adata, adata], "tuple": (adata, adata), "dict": {"a": adata, "b": adata}}[
        kind
    ]
    with pytest.raises(ArgumentTypeError, match=r"join them with anndata\.concat"):
        check_anndata("it must be", parts)
    joined = anndata.concat(parts, index_unique="-")
    SCVI.setup_anndata(joined)


@pytest.mark.parametrize("kind", ["frame", "array", "csr", "tensor", "sparse array"])
def test_an_anndata_is_made_of_a_matrix(trained, tiny, kind):
    dense = tiny().X.toarray()
    counts = {
        "frame": pd.DataFrame(dense, index=tiny().obs_names, columns=tiny().var_names),
        "array": dense,
        "csr": tiny().X,
        "tensor": torch.from_numpy(dense),
        "sparse array": sp.csr_array(tiny().X),
    }[kind]
    adata = eval(get_fix(counts), {"anndata": anndata, "counts": counts})
    SCVI.setup_anndata(adata)
    if kind != "frame":
        adata.var_names = tiny().var_names
    for key in ("batch", "cell_type"):
        adata.obs[key] = list(tiny().obs[key])
    assert trained.get_latent_representation(adata).shape == (60, 3)


@pytest.mark.parametrize("value", [None, 3, [], {}, object(), Path])
def test_anything_else_is_told_to_read_a_file(refused, value):
    with refused(ArgumentTypeError, type(value).__name__, "read one with anndata.read_h5ad."):
        check_anndata("it must be", value)
