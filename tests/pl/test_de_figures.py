"""Volcano and heatmap of differential expression."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, OptionError
from vivace.pl import heatmap, volcano


def de_table(comparison: str, effects: list[float], called: list[bool]) -> pd.DataFrame:
    n = len(effects)
    proba = np.where(called, 0.999, 0.3)
    return pd.DataFrame(
        {
            "proba_not_de": 1 - proba,
            "lfc_mean": effects,
            "delta": 0.25,
            "is_de_fdr_0.05": called,
            "comparison": comparison,
        },
        index=[f"gene{i}" for i in range(n)],
    )


TABLE = de_table("a vs Rest", [3.0, -2.0, 0.1], [True, True, False])


def test_a_volcano_shows_every_gene_and_names_the_called_ones(tmp_path):
    ax = volcano(TABLE, save=tmp_path / "volcano.png")
    assert (tmp_path / "volcano.png").read_bytes().startswith(b"\x89PNG")
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    assert sorted(points[:, 0]) == [-2.0, 0.1, 3.0]
    assert {t.get_text() for t in ax.texts} == {"gene0", "gene1"}
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "not called (1)",
        "up (1)",
        "down (1)",
    ]


def test_a_volcano_shows_one_comparison(refused):
    both = pd.concat([TABLE, de_table("b vs Rest", [1.0], [True])])
    assert volcano(both, "b vs Rest").get_title(loc="left") == "b vs Rest"
    with refused(OptionError, "2 comparisons", "'a vs Rest'"):
        volcano(both)
    with refused(DataError, "'c vs Rest'", "'a vs Rest'"):
        volcano(both, "c vs Rest")
    with refused(OptionError, "'vanilla'"):
        volcano(TABLE.drop(columns="is_de_fdr_0.05"))


def test_a_heatmap_shows_the_genes_that_are_called_and_up(tmp_path, refused):
    counts = np.array([[9, 1, 0], [8, 0, 2], [0, 5, 5], [1, 4, 5]], np.float32)
    obs = pd.DataFrame({"kind": ["a", "a", "b", "b"]}, index=list("wxyz"))
    var = pd.DataFrame(index=["gene0", "gene1", "gene2"])
    adata = AnnData(sp.csr_matrix(counts), obs=obs, var=var)
    result = pd.concat([TABLE, de_table("b vs Rest", [-3.0, 2.0, 1.0], [True, True, True])])
    result.attrs["groupby"] = "kind"
    ax = heatmap(result, adata, save=tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["gene0", "gene1", "gene2"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 0, 0], [0, 1, 1]])
    with refused(MissingColumnError, "'kin'", "did you mean 'kind'?"):
        heatmap(result, adata, groupby="kin")
    with refused(DataError, "'gene2'"):
        heatmap(result, adata[:, :2])
    with refused(DataError, "No gene is called"):
        heatmap(de_table("a vs b", [1.0], [False]), adata, groupby="kind")
    for axis in ("obs", "var"):
        repeated = adata.copy()
        if axis == "obs":
            repeated.obs = pd.concat([repeated.obs, repeated.obs], axis=1)
            parts = ["obs has 2 columns named 'kind' (groupby)"]
        else:
            repeated.var_names = ["gene0", "gene1", "gene1"]
            parts = ["var_names holds 1 duplicated gene names", "'gene1'"]
        with refused(DataError, *parts):
            heatmap(result, repeated)


@pytest.mark.parametrize("value", [np.ones((9, 9)), None, 1.5, "zzz", {"a": 1}], ids=type)
def test_arguments_of_the_wrong_type_are_refused(refused, value):
    cells = AnnData(np.ones((4, 3), np.float32))
    for draw in (volcano, lambda result: heatmap(result, cells)):
        with refused(ArgumentTypeError, "result must be the frame", ", not "):
            draw(value)
    with refused(ArgumentTypeError, "adata must be an AnnData"):
        heatmap(TABLE, value)
    with refused(ArgumentTypeError, "n_genes must be an integer"):
        volcano(TABLE, n_genes=value)
    if value is not None:
        with refused(DataError, "no comparison", "available: 'a vs Rest'"):
            volcano(TABLE, value)
    with refused(*without_groups(value)):
        heatmap(TABLE, cells, groupby=value)


def without_groups(groupby):
    """The error, and a part of its message, where obs has no column."""
    if groupby is None:
        return DataError, "give groupby="
    if isinstance(groupby, str):
        return MissingColumnError, "obs has no column 'zzz' (groupby)", "there are none"
    return ArgumentTypeError, "groupby must be the name of a column of obs"


def test_a_frame_of_something_else_is_refused(refused):
    cells = AnnData(
        np.ones((4, 3), np.float32), obs=pd.DataFrame({"g": list("aabb")}, list("wxyz"))
    )
    frame = pd.DataFrame({"a": [1]})
    for draw in (volcano, lambda result: heatmap(result, cells, groupby="g")):
        with refused(DataError, "The frame has no comparison"):
            draw(frame)
