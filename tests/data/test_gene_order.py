"""Genes of new data: missing, in another order, named twice."""

from __future__ import annotations

import numpy as np

from vivace.errors import (
    DataError,
    MissingColumnError,
)


def test_missing_genes_are_counted_and_named(tiny, trained, refused):
    adata = tiny()[:, 2:].copy()
    with refused(MissingColumnError, "lack 2 of the model's 30 genes", "('gene0', 'gene1')"):
        trained.get_latent_representation(adata)


def test_a_few_of_many_missing_genes_are_named(tiny, trained, refused):
    adata = tiny()
    adata.var_names = [f"ENSG{i}" for i in range(30)]
    with refused(
        MissingColumnError,
        "lack 30 of the model's 30 genes",
        "'gene4', ...",
        "same gene identifiers",
    ):
        trained.get_latent_representation(adata)


def test_genes_in_another_order_are_aligned_by_name(tiny, trained):
    turned = tiny()[:, ::-1].copy()
    np.testing.assert_array_equal(
        trained.get_latent_representation(turned), trained.get_latent_representation()
    )


def test_genes_named_twice_are_refused(tiny, use, refused):
    adata = tiny()
    adata.var_names = ["gene1", "gene1", *adata.var_names[2:]]
    with refused(DataError, "1 duplicated gene names", "'gene1'", "var_names_make_unique"):
        use(adata)
