"""How kernels are compiled and run: caches, threads, forks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

import vivace
from vivace.ops.runtime.compilation import Compilation
from vivace.ops.runtime.kernels import (
    _load_or_compile,
    _without_collector,
    inner_kernel,
    kernel,
    parallel_kernel,
)
from vivace.ops.sparse_linear import cpu

SOURCE = Path(vivace.__file__).parents[1]

PRODUCT = """
import numpy as np
from vivace.ops.sparse_linear.cpu import product_into
out = np.empty((3, 4), np.float32)
indptr, genes = np.array([0, 1, 1, 2]), np.array([1, 0], np.int32)
values, weight = np.array([2, 3], np.float32), np.ones((2, 4), np.float32)
product_into(out, indptr, genes, values, weight)
assert out.tolist() == [[2.0] * 4, [0.0] * 4, [3.0] * 4]
"""


def run(program: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environment,
        cwd=cwd,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def threads():
    """Restores the automatic number of threads afterwards."""
    yield
    vivace.settings.num_threads = None


@pytest.mark.slow
def test_kernels_are_cached_on_disk(tmp_path):
    cached = "\nassert sum(product_into.threaded.stats.cache_hits.values()) == {}"
    two = {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    for hits in (0, 1):
        run(PRODUCT + cached.format(hits), NUMBA_CACHE_DIR=str(tmp_path), **two)


@inner_kernel()
def half(x):
    return 0.5 * x


@kernel()
def quarter(x):
    return half(half(x))


@pytest.mark.slow
def test_an_inner_kernel_is_called_by_kernels_only(tmp_path):
    """It cannot be called from Python, whether it was compiled, loaded or neither."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_compiled import half, quarter\n"
        "for _ in range(2):\n"
        "    try: half(1.0)\n"
        "    except TypeError as error: assert str(error) == 'half can be called by kernels only.'\n"
        "    else: raise AssertionError\n"
        "    assert quarter(1.0) == 0.25\n"
    )
    run(program, NUMBA_CACHE_DIR=str(tmp_path))
    run(program, NUMBA_CACHE_DIR=str(tmp_path))
    files = list(tmp_path.rglob("*quarter*"))
    assert files
    for file in files:  # compiled again, with the inner one loaded
        file.unlink()
    run(program + "assert half.stats.cache_hits\n", NUMBA_CACHE_DIR=str(tmp_path))


def test_without_a_folder_that_can_be_written_kernels_are_compiled_each_time(tmp_path):
    """As in a read-only installation of a user without a home directory."""
    program = "from numba.core import caching\ncaching.CacheImpl._locator_classes = []\n" + PRODUCT
    run(program, cwd=tmp_path)


def test_a_cache_that_becomes_a_file_is_done_without(tmp_path):
    """As when the disk is full: kernels are compiled but not cached."""
    folder = tmp_path / "cache"
    spoil = (
        "import shutil, pathlib\n"
        "from vivace.ops.sparse_linear import cpu\n"
        f"shutil.rmtree({str(folder)!r}, ignore_errors=True)\n"
        f"pathlib.Path({str(folder)!r}).touch()\n"
    )
    run(spoil + PRODUCT, NUMBA_CACHE_DIR=str(folder), OMP_NUM_THREADS="1")
    assert folder.is_file()


@pytest.mark.slow
def test_a_cache_that_goes_away_is_made_again(tmp_path):
    folder = tmp_path / "cache"
    run(PRODUCT, NUMBA_CACHE_DIR=str(folder))
    for file in folder.rglob("*.nb*"):
        file.unlink()
    for part in sorted(folder.rglob("*"), reverse=True):
        part.rmdir()
    folder.rmdir()
    run(PRODUCT, NUMBA_CACHE_DIR=str(folder))
    assert list(folder.rglob("*.nbc"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" * 99])
def test_damaged_files_in_the_cache_are_replaced(tmp_path, damage):
    settings = {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    cached = "\nassert product_into.serial.stats.cache_hits"
    run(PRODUCT, **settings)
    run(PRODUCT + cached, **settings)
    for file in tmp_path.rglob("*.nb[ic]"):
        file.write_bytes(damage(file.read_bytes()))
    run(PRODUCT, **settings)
    run(PRODUCT + cached, **settings)


def test_an_interrupt_that_c_code_turned_into_another_error_is_an_interrupt():
    def load():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise SystemError("returned a result with an exception set") from interrupt

    def fail():
        raise SystemError("of another kind")

    flushed = []
    for method in (_load_or_compile(load, lambda: flushed.append(1)), _without_collector(load)):
        with pytest.raises(KeyboardInterrupt):
            method()
    assert not flushed
    assert _load_or_compile(fail, lambda: flushed.append(1))() is None
    assert flushed
    with pytest.raises(SystemError, match="of another kind"):
        _without_collector(fail)()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_runs_kernels_and_lives():
    """Numba's OpenMP threads would kill it; data workers are forked processes."""
    program = PRODUCT + (
        "import os, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    out[:] = 0\n"
        "    product_into(out, indptr, genes, values, weight)\n"
        "    os._exit(0 if out[2, 0] == 3.0 else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "product_into(out, indptr, genes, values, weight)\n"
    )
    run(program, OMP_NUM_THREADS="2")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    "first", ["model.train(1, progress=False)", "torch.ones(99, 99) @ torch.ones(99, 99)"]
)
def test_a_forked_process_trains_and_answers(first):
    """Whatever threads its parent has started."""
    program = (
        "import os, warnings, torch, vivace\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "adata = vivace.datasets.pbmc3k()[:300].copy()\n"
        "vivace.SCVI.setup_anndata(adata)\n"
        "model = vivace.SCVI(adata, n_hidden=16)\n"
        f"{first}\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert vivace.settings.num_threads == 1\n"
        "    model.train(1, progress=False)\n"
        "    os._exit(0 if model.get_latent_representation().shape == (300, 10) else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert vivace.settings.num_threads == 2\n"
    )
    run(program, OMP_NUM_THREADS="2")


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")
def test_one_number_of_threads_for_torch_and_the_kernels(threads):
    ran = []

    class Recorded:
        def __init__(self, name):
            self.name = name

        def __call__(self):
            ran.append((self.name, numba.get_num_threads()))

    kernel = parallel_kernel()(lambda: None)
    vars(kernel).update(threaded=Recorded("threaded"), serial=Recorded("serial"))
    numba.set_num_threads(1)
    for wanted in (2, 1, 2):
        vivace.settings.num_threads = wanted
        assert torch.get_num_threads() == vivace.settings.num_threads == wanted
        kernel()
    assert ran == [("threaded", 2), ("serial", 2), ("threaded", 2)]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")
def test_threads_do_not_change_a_bit(threads):
    rng = np.random.default_rng(0)
    x = rng.poisson(0.2, (70, 600)) * 1.0  # several partitions of each kind
    indptr = np.concatenate([[0], np.cumsum((x > 0).sum(1))])
    genes, values = np.nonzero(x)[1].astype(np.int32), x[x > 0].astype(np.float32)
    weight = rng.normal(size=(600, 24)).astype(np.float32)
    upstream = rng.normal(size=(70, 24)).astype(np.float32)
    result = []
    for number in (1, 2):
        vivace.settings.num_threads = number
        out, gradient = np.empty((70, 24), np.float32), np.empty((600, 24), np.float32)
        cpu.product_into(out, indptr, genes, values, weight)
        cpu.weight_gradient_into(gradient, indptr, genes, values, upstream)
        result.append(np.concatenate([out.ravel(), gradient.ravel()]))
    assert np.array_equal(*result)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_pauses_while_a_kernel_is_compiled(enabled):
    enabled_within = []

    @kernel()
    def double(x):
        return 2 * x

    with Compilation(lambda: enabled_within.append(gc.isenabled())):
        try:
            (gc.enable if enabled else gc.disable)()
            with pytest.raises(numba.TypingError):  # never from the cache
                double(None)
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
    assert enabled_within == [False]
