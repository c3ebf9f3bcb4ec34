from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from vivace.data import MemorySource, Source, SparseCounts, read_cells
from vivace.data.schema import Declarations, Schema


@pytest.fixture
def source(tiny) -> MemorySource:
    declarations = Declarations(
        batch_key="batch",
        labels_key="cell_type",
        size_factor_key="depth",
        categorical_covariate_keys=("donor", "cell_type"),
        continuous_covariate_keys=("age",),
    )
    return read_cells(tiny(), Schema.from_anndata(tiny(), declarations))


ROWS = {
    "in order": [0, 1, 2],
    "a stretch": [30, 31, 32, 33],
    "all": range(60),
    "falling": [4, 3, 2],
    "in order but for one": [7, 8, 10, 11],
    "as many as a stretch": [7, 9, 9, 10],
    "unsorted": [41, 3, 59, 0],
    "repeated": [5, 5, 0, 5],
    "one": [17],
    "fifteen": [(7 * i) % 60 for i in range(15)],
    "a block of sixteen": [(7 * i) % 60 for i in range(16)],
    "a block and one": [(7 * i) % 60 for i in range(17)],
    "two blocks and one": [(7 * i) % 60 for i in range(33)],
    "none": [],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_gather_gives_the_rows_asked_for_in_their_order(source, rows):
    batch = source.gather(np.array(rows, np.int64))
    assert batch.n_cells == batch.counts.n_cells == len(rows)
    np.testing.assert_array_equal(batch.counts.dense(), source.counts.toarray()[rows])
    np.testing.assert_array_equal(batch.library, source.counts.toarray()[rows].sum(1))
    for name in ("batch", "labels", "categorical", "continuous", "size_factor"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(source, name)[rows])


def test_counts_that_may_not_be_written_to_are_gathered_without_a_warning(source):
    source.counts.data.flags.writeable = False
    batch = source.gather(np.arange(3, 9))
    np.testing.assert_array_equal(batch.counts.dense(), source.counts.toarray()[3:9])


def test_a_batch_has_the_types_that_the_kernels_read(source):
    batch = source.gather(np.arange(4))
    types = {
        torch.int64: (batch.counts.indptr, batch.batch, batch.labels, batch.categorical),
        torch.int32: (batch.counts.genes,),
        torch.float32: (
            batch.counts.values,
            batch.library,
            batch.continuous,
            batch.size_factor,
        ),
    }
    for dtype, tensors in types.items():
        assert [tensor.dtype for tensor in tensors] == [dtype] * len(tensors)
    assert batch.categorical.shape == (4, 2)
    assert batch.continuous.shape == (4, 1)


def test_a_matrix_with_64_bit_indices_gives_the_same_cells(source):
    x = source.counts
    wide = sp.csr_matrix(x)
    wide.indices, wide.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    rows = np.array([30, 2, 2])
    batch = dataclasses.replace(source, counts=wide).gather(rows)
    assert wide.indices.dtype == np.int64
    np.testing.assert_array_equal(batch.counts.dense(), x.toarray()[rows])
    assert batch.counts.genes.dtype == torch.int32


def test_a_source_without_size_factor_gives_none(source):
    assert dataclasses.replace(source, size_factor=None).gather(np.arange(2)).size_factor is None


def test_a_gathered_batch_is_apart_from_its_source(source):
    batch = source.gather(np.arange(3))
    batch.counts.values.fill_(99.0)
    batch.library.fill_(99.0)
    assert source.counts.data.max() < 99
    assert source.library.max() < 99


def test_a_batch_stays_itself_on_its_own_device(source):
    batch = source.gather(np.arange(3))
    assert batch.to(torch.device("cpu")) is batch


def test_a_batch_goes_whole_to_another_device(source):
    on_meta = source.gather(np.arange(3)).to(torch.device("meta"))
    tensors = [on_meta.counts.indptr, on_meta.counts.genes, on_meta.counts.values]
    tensors += [
        getattr(on_meta, name)
        for name in ("library", "batch", "labels", "categorical", "continuous", "size_factor")
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_batches_are_frozen(source):
    batch = source.gather(np.arange(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.library = torch.zeros(3)


def test_a_source_has_what_training_reads(source):
    cells: Source = source
    assert (cells.n_cells, cells.n_genes, cells.has_counts, cells.smallest) == (60, 30, True, 0)
    assert cells.library.shape == cells.batch.shape == (60,)


def test_sparse_counts_keep_what_a_dense_matrix_holds():
    x = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    counts = SparseCounts.from_dense(x)
    assert counts.indptr.tolist() == [0, 1, 1, 3]
    assert counts.genes.tolist() == [1, 0, 2]
    assert (counts.n_cells, counts.n_genes) == (3, 3)
    assert torch.equal(counts.dense(), x)
    assert counts.dense(torch.float64).dtype == torch.float64
