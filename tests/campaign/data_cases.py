"""Random AnnData: every storage of one matrix gives one answer; damage is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from campaign.outcomes import Outcome, isolated
from simulated import simulate_cells
from vivace import SCVI

Rng = np.random.Generator
_GENES = 30


@dataclass(frozen=True)
class Setting:
    """A trained model, whose genes and batches the random data have."""

    model: SCVI

    @classmethod
    def make(cls, folder: Path) -> Setting:
        adata = simulate_cells(n_genes=_GENES)
        SCVI.setup_anndata(adata, batch_key="batch")
        model = SCVI(adata, n_hidden=16, n_latent=3)
        model.train(max_epochs=2, batch_size=20, seed=1, progress=False)
        model.differential_expression(groupby="batch", silent=True)  # compiles its kernels
        return cls(model)

    def run(self, rng: Rng, folder: Path) -> Outcome:
        kind = rng.choice(["storage", "damage", "column"], p=[0.5, 0.3, 0.2])
        return {"storage": self._storage, "damage": self._damage, "column": self._column}[kind](
            rng, folder
        )

    def _storage(self, rng: Rng, folder: Path) -> Outcome:
        """The same counts in another storage: answers agree with those of the plain matrix."""
        plain = _random_cells(rng)
        names = rng.choice(list(STORAGES), size=rng.integers(1, 4), replace=False).tolist()
        tried = f"storage {names} of {plain.shape}"
        trains = rng.random() < 0.2

        def case() -> Outcome:
            stored = plain.copy()
            folder.mkdir(exist_ok=True)
            for name in names:
                stored = STORAGES[name](stored, rng, folder)
            expected = self.model.get_latent_representation(plain)
            answer = self.model.get_latent_representation(stored)
            rows = self.model.get_normalized_expression(stored, library_size="latent").sum(axis=1)
            total = np.asarray(plain.X.sum(axis=1)).ravel()
            order = plain.obs_names.get_indexer(stored.obs_names)
            if not np.allclose(answer, expected[order], atol=1e-4):
                return Outcome("silent", f"{tried}: another latent representation")
            if not np.allclose(rows, total[order], rtol=1e-4):
                return Outcome("silent", f"{tried}: expression does not add up to the counts")
            if trains:
                stored = stored.copy()
                stored.layers["counts"] = stored.X
                stored.X = rng.normal(size=stored.shape)
                elbo = _train(stored, layer="counts")
                if not np.isfinite(elbo).all():
                    return Outcome("silent", f"{tried}: an ELBO that is not finite")
                same_order = not {"view", "genes", "more"} & set(names)
                if same_order and not np.allclose(elbo, _train(plain), rtol=1e-4):
                    return Outcome("silent", f"{tried}: training gives another model")
            return Outcome("right")

        return isolated(case, folder, tried)

    def _damage(self, rng: Rng, folder: Path) -> Outcome:
        """Data that are no counts of these genes must be refused, by set-up or by a question."""
        adata, name = _random_cells(rng), str(rng.choice(list(DAMAGES)))
        tried = f"damage {name!r} of {adata.shape}"
        asks = bool(rng.integers(2))

        def case() -> Outcome:
            damaged = DAMAGES[name](adata, rng)
            if asks:
                self.model.get_latent_representation(damaged)
            else:
                SCVI.setup_anndata(damaged, batch_key="batch")
                SCVI(damaged, n_hidden=8, n_latent=2)
            return Outcome("silent", f"{tried}: was taken ({'question' if asks else 'set-up'})")

        return isolated(case, folder, tried)

    def _column(self, rng: Rng, folder: Path) -> Outcome:
        """A column of any type: its groups and numbers are those that plain Python finds."""
        adata, name = _random_cells(rng), str(rng.choice(list(COLUMNS)))
        key = str(rng.choice(["batch_key", "labels_key", "categorical", "continuous", "size"]))
        missing = rng.random() < 0.2
        tried = f"column {name!r} as {key}{', a value missing' * missing}"

        def case() -> Outcome:
            values = COLUMNS[name](rng, adata.n_obs)
            column = pd.Series(values, index=adata.obs_names)
            if missing:
                column = column.copy()
                row = int(rng.integers(adata.n_obs))
                column = column.where(np.arange(adata.n_obs) != row)
                if not column.isna().any():
                    return Outcome("right")  # a type that cannot lack a value
            adata.obs["odd"] = column
            declared: dict[str, dict[str, Any]] = {
                "categorical": {"categorical_covariate_keys": ["odd"]},
                "continuous": {"continuous_covariate_keys": ["odd"]},
                "size": {"size_factor_key": "odd"},
            }
            SCVI.setup_anndata(adata, **declared.get(key, {key: "odd"}))
            model = SCVI(adata, n_hidden=8, n_latent=2)
            if missing:
                return Outcome("silent", f"{tried}: was taken")
            model.train(max_epochs=1, progress=False)
            if not np.isfinite(model.get_elbo(return_mean=False)).all():
                return Outcome("silent", f"{tried}: an ELBO that is not finite")
            expected = list(column.to_numpy(dtype=object))
            if key == "continuous":
                number = np.array([float(v) for v in expected])
                scale = model.schema.scales[0]
                if not np.isclose(scale.mean, number.mean(), rtol=1e-4):
                    return Outcome("silent", f"{tried}: mean {scale.mean}, not {number.mean()}")
            elif key != "size":
                found = {
                    "batch_key": model.schema.batches,
                    "labels_key": model.schema.labels,
                }.get(key) or model.schema.categories[0]
                groups = set(map(str, expected))
                texts = {v.decode() if isinstance(v, bytes) else str(v) for v in expected}
                if len(found) != len(groups) or not set(map(str, found)) & texts:
                    return Outcome("silent", f"{tried}: {found[:5]} for {sorted(groups)[:5]}")
            return Outcome("right")

        return isolated(case, folder, tried)


def _train(adata: AnnData, layer: str | None = None) -> np.ndarray:
    """The ELBO of each cell, of a model trained for an epoch."""
    SCVI.setup_anndata(adata, layer=layer, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=1, seed=0, progress=False)
    return model.get_elbo(return_mean=False, seed=0)


def _random_cells(rng: Rng) -> AnnData:
    """1 to 40 cells with the genes and batches of the model; no cell is empty."""
    n = int(rng.integers(1, 41))
    counts = rng.poisson(rng.gamma(0.5, 2.0, _GENES), (n, _GENES))
    counts[np.arange(n), rng.integers(0, _GENES, n)] += 1
    obs = pd.DataFrame({"batch": rng.choice(["b0", "b1"], n)}, index=[f"cell{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(_GENES)])
    return AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


# ---- storage that changes nothing ----------------------------------------------------------


def _with_x(make: Callable[[Any, Rng], Any]) -> Callable[[AnnData, Rng, Path], AnnData]:
    def change(adata: AnnData, rng: Rng, folder: Path) -> AnnData:
        adata = adata.copy() if adata.is_view else adata
        adata.X = make(adata.X, rng)
        return adata

    return change


def _dense(x: Any) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.array(x)


def _shuffled_indices(x: Any, rng: Rng) -> sp.csr_matrix:
    x = sp.csr_matrix(_dense(x))
    for start, end in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        order = start + rng.permutation(end - start)
        x.indices[start:end], x.data[start:end] = x.indices[order], x.data[order]
    x.has_sorted_indices = False
    return x


def _split_entries(x: Any, rng: Rng) -> sp.csr_matrix:
    """Each entry twice: 1 and the rest."""
    coo = sp.coo_matrix(_dense(x))
    rows, columns = np.repeat(coo.row, 2), np.repeat(coo.col, 2)
    values = np.column_stack([np.ones_like(coo.data), coo.data - 1]).ravel()
    order = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[order], np.arange(x.shape[0] + 1))
    made = sp.csr_matrix(x.shape, dtype=values.dtype)
    made.data, made.indices, made.indptr = values[order], columns[order], indptr
    made.has_canonical_format = made.has_sorted_indices = False
    return made


def _wide_indices(x: Any, rng: Rng) -> sp.csr_matrix:
    x = sp.csr_matrix(_dense(x))
    x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    return x


def _stored_zeros(x: Any, rng: Rng) -> sp.csr_matrix:
    dense = _dense(x)
    full = sp.csr_matrix(np.ones_like(dense))
    full.data = dense.ravel()
    return full


def _through_file(adata: AnnData, rng: Rng, folder: Path) -> AnnData:
    path = folder / f"cells{rng.integers(10**9)}{rng.choice(['.h5ad', '.zarr'])}"
    if path.suffix == ".zarr":
        adata.write_zarr(path)
        return anndata.read_zarr(path)
    adata.write_h5ad(path)
    return anndata.read_h5ad(path)


def _view(adata: AnnData, rng: Rng, folder: Path) -> AnnData:
    return adata[rng.permutation(adata.n_obs)]


def _other_genes(adata: AnnData, rng: Rng, folder: Path) -> AnnData:
    return adata[:, rng.permutation(adata.n_vars)].copy()


def _more_genes(adata: AnnData, rng: Rng, folder: Path) -> AnnData:
    extra = AnnData(np.ones((adata.n_obs, 2), np.float32), obs=adata.obs[[]])
    extra.var_names = ["other1", "other2"]
    joined = anndata.concat([adata.copy(), extra], axis="var", merge="first")
    joined.obs["batch"] = adata.obs["batch"].to_numpy()
    return joined


TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
         "float16", "float32", "float64", ">f4", ">i4", ">f8", "longdouble"]  # fmt: skip
STORAGES: dict[str, Callable[[AnnData, Rng, Path], AnnData]] = {
    "csr": _with_x(lambda x, _: sp.csr_matrix(_dense(x))),
    "csc": _with_x(lambda x, _: sp.csc_matrix(_dense(x))),
    "csr_array": _with_x(lambda x, _: sp.csr_array(_dense(x))),
    "csc_array": _with_x(lambda x, _: sp.csc_array(_dense(x))),
    "dense": _with_x(lambda x, _: _dense(x)),
    "fortran": _with_x(lambda x, _: np.asfortranarray(_dense(x))),
    "strided": _with_x(lambda x, _: np.repeat(_dense(x), 2, axis=0)[::2]),
    "read-only": _with_x(lambda x, _: _frozen(_dense(x))),
    "shuffled": _with_x(_shuffled_indices),
    "split": _with_x(_split_entries),
    "wide": _with_x(_wide_indices),
    "zeros": _with_x(_stored_zeros),
    "masked": _with_x(lambda x, _: np.ma.masked_array(_dense(x), mask=False)),
    "file": _through_file,
    "view": _view,
    "genes": _other_genes,
    "more": _more_genes,
} | {name: _with_x(lambda x, _, name=name: _typed(x, name)) for name in TYPES}


def _typed(x: Any, name: str) -> Any:
    sparse = sp.issparse(x) and name[0] != ">" and name != "float16"  # SciPy has no such matrices
    return (x if sparse else _dense(x)).astype(name)


def _frozen(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


# ---- damage --------------------------------------------------------------------------------


def _damaged_csr(change: Callable[[Any, Rng], None]) -> Callable[[AnnData, Rng], AnnData]:
    def damage(adata: AnnData, rng: Rng) -> AnnData:
        x = adata.X.copy()
        if rng.integers(2):
            x = x.tocsc()
        change(x, rng)
        made = adata.copy()
        made.X = type(x)(x.shape, dtype=x.dtype)
        made.X.data, made.X.indices, made.X.indptr = x.data, x.indices, x.indptr
        return made

    return damage


def _set(field: str, value: Callable[[Any], float]) -> Callable[[Any, Rng], None]:
    def change(x: Any, rng: Rng) -> None:
        array = getattr(x, field)
        array[rng.integers(len(array))] = value(x)

    return change


def _shortened(field: str) -> Callable[[Any, Rng], None]:
    def change(x: Any, rng: Rng) -> None:
        setattr(x, field, getattr(x, field)[:-1])

    return change


def _falling(x: Any, rng: Rng) -> None:
    x.indptr[rng.integers(1, len(x.indptr) - 1) if len(x.indptr) > 2 else 1] = -1


def _repeated_genes(adata: AnnData, rng: Rng) -> AnnData:
    adata.var_names = ["gene1", *adata.var_names[1:]]
    return adata


def _replaced_x(make: Callable[[np.ndarray, Rng], Any]) -> Callable[[AnnData, Rng], AnnData]:
    def damage(adata: AnnData, rng: Rng) -> AnnData:
        made = AnnData(obs=adata.obs.copy(), var=adata.var.copy())
        made.X = make(adata.X.toarray(), rng)
        return made

    return damage


def _empty_cell(x: np.ndarray, rng: Rng) -> np.ndarray:
    x[rng.integers(len(x))] = 0
    return x


def _hide(x: np.ndarray, rng: Rng) -> np.ma.MaskedArray:
    mask = np.zeros(x.shape, bool)
    mask[rng.integers(len(x)), rng.integers(x.shape[1])] = True
    return np.ma.masked_array(x, mask)


DAMAGES: dict[str, Callable[[AnnData, Rng], AnnData]] = {
    "gene beyond": _damaged_csr(_set("indices", lambda x: 10**6)),
    "gene just beyond": _damaged_csr(_set("indices", lambda x: max(x.shape))),
    "gene negative": _damaged_csr(_set("indices", lambda x: -1)),
    "pointer beyond": _damaged_csr(_set("indptr", lambda x: 10**9)),
    "pointer negative": _damaged_csr(_falling),
    "short data": _damaged_csr(_shortened("data")),
    "short indices": _damaged_csr(_shortened("indices")),
    "short pointers": _damaged_csr(_shortened("indptr")),
    "NaN": _damaged_csr(_set("data", lambda x: np.nan)),
    "infinity": _damaged_csr(_set("data", lambda x: np.inf)),
    "minus infinity": _damaged_csr(_set("data", lambda x: -np.inf)),
    "negative": _damaged_csr(_set("data", lambda x: -1)),
    "fraction": _damaged_csr(_set("data", lambda x: 0.5)),
    "empty cell": _replaced_x(_empty_cell),
    "complex": _replaced_x(lambda x, _: x.astype(complex)),
    "objects": _replaced_x(lambda x, _: x.astype(object)),
    "text": _replaced_x(lambda x, _: x.astype(str)),
    "times": _replaced_x(lambda x, _: x.astype("timedelta64[s]")),
    "masked": _replaced_x(_hide),
    "log": _replaced_x(lambda x, _: np.log1p(x)),
    "huge": _replaced_x(lambda x, _: np.where(x > 0, 1e300, 0.0)),
    "no X": lambda adata, _: AnnData(obs=adata.obs.copy(), var=adata.var.copy()),
    "no cells": lambda adata, _: adata[:0].copy(),
    "no genes": lambda adata, _: adata[:, :0].copy(),
    "duplicated genes": _repeated_genes,
    "no batch": lambda adata, _: AnnData(adata.X, obs=adata.obs[[]], var=adata.var),
}

# ---- columns -------------------------------------------------------------------------------


def _codes(rng: Rng, n: int) -> np.ndarray:
    return rng.integers(1, 4, n)


COLUMNS: dict[str, Callable[[Rng, int], Any]] = {
    **{t: lambda r, n, t=t: _codes(r, n).astype(t) for t in
       ["int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "longdouble",
        "complex128", "datetime64[s]", "timedelta64[s]", "S3", ">i4", ">f8"]},
    "bool": lambda r, n: _codes(r, n) > 1,
    "text": lambda r, n: _codes(r, n).astype(str).astype(object),
    "long text": lambda r, n: np.array([str(c) * 10**4 for c in _codes(r, n)], object),
    "any letters": lambda r, n: np.array([chr(200 * c) + "\n\t" for c in _codes(r, n)], object),
    "string": lambda r, n: pd.array(_codes(r, n).astype(str), dtype="string"),
    "Int64": lambda r, n: pd.array(_codes(r, n), dtype="Int64"),
    "UInt8": lambda r, n: pd.array(_codes(r, n), dtype="UInt8"),
    "Float32": lambda r, n: pd.array(_codes(r, n), dtype="Float32"),
    "boolean": lambda r, n: pd.array(_codes(r, n) > 1, dtype="boolean"),
    "category": lambda r, n: pd.Categorical(_codes(r, n), categories=[9, 3, 2, 1]),
    "ordered": lambda r, n: pd.Categorical(_codes(r, n).astype(str), list("4321"), ordered=True),
    "category of times": lambda r, n: pd.Categorical(_codes(r, n).astype("datetime64[D]")),
    "sparse": lambda r, n: pd.arrays.SparseArray(_codes(r, n)),
    "times with zone": lambda r, n: pd.DatetimeIndex(_codes(r, n).astype("datetime64[D]"), tz="UTC"),
    "periods": lambda r, n: pd.PeriodIndex(_codes(r, n).astype("datetime64[D]"), freq="D"),
    "intervals": lambda r, n: pd.cut(_codes(r, n), [0, 1, 2, 3]),
    "mixed": lambda r, n: np.array([c if c > 1 else str(c) for c in _codes(r, n).tolist()], object),
    "mixed alike": lambda r, n: np.array([r.choice([1, "1"]) for _ in range(n)], object),
    "tuples": lambda r, n: pd.Series([(int(c), "x") for c in _codes(r, n)]).array,
    "lists": lambda r, n: pd.Series([[int(c)] for c in _codes(r, n)]).array,
    "dicts": lambda r, n: pd.Series([{"a": int(c)} for c in _codes(r, n)]).array,
    "objects": lambda r, n: np.array([object() for _ in range(n)], object),
    "infinity": lambda r, n: np.where(_codes(r, n) > 1, np.inf, 1.0),
    "huge": lambda r, n: _codes(r, n) * 1e300,
    "big integers": lambda r, n: np.array([10**30 * int(c) for c in _codes(r, n)], object),
}  # fmt: skip
