"""Which backend runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vivace.errors import OptionError
from vivace.ops.backend import pick

FLOAT, DOUBLE = torch.zeros(1), torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("operation", ["count_nll", "sparse_linear"])
@pytest.mark.parametrize(
    ("backend", "tensors", "expected"),
    [
        ("auto", (FLOAT, None), "cpu"),
        ("auto", (FLOAT, DOUBLE), "reference"),
        ("auto", (torch.empty(1, device="meta"),), "reference"),
        ("cpu", (FLOAT, FLOAT), "cpu"),
        ("reference", (FLOAT,), "reference"),
        ("reference", (DOUBLE,), "reference"),
    ],
)
def test_kernels_where_they_can_read_the_tensors(operation, backend, tensors, expected):
    assert pick(operation, backend, *tensors).__name__ == f"vivace.ops.{operation}.{expected}"


def test_kernels_that_cannot_read_the_tensors_are_refused(refused):
    with refused(OptionError, "backend='cpu'", "float32", "'reference'"):
        pick("count_nll", "cpu", FLOAT, DOUBLE)


def test_an_unknown_backend_is_refused(refused):
    with refused(OptionError, "backend", "'auto', 'reference', 'cpu'", "'tpu'"):
        pick("count_nll", "tpu", FLOAT)


def test_numba_is_imported_with_the_first_kernel():
    program = (
        "import sys, torch\n"
        "from vivace.ops.backend import pick\n"
        "assert 'numba' not in sys.modules\n"
        "pick('count_nll', 'reference', torch.zeros(1))\n"
        "assert 'numba' not in sys.modules\n"
        "pick('count_nll', 'cpu', torch.zeros(1))\n"
        "assert 'numba' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
