"""Types of arrays and arguments, shared by all of vivace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
Bool = NDArray[np.bool_]
Rows = NDArray[np.int64]  # row numbers of cells

Indices = Sequence[int] | NDArray[Any]  # row numbers, or a boolean mask: see selection.py
Category = str | int | float | bool
# transform_batch: a category, several, or a mapping from columns to those
Transform = Category | Sequence[Category] | Mapping[str, Category | Sequence[Category]] | None

if TYPE_CHECKING:
    NameIndex = pd.Index[str]
else:
    NameIndex = pd.Index  # pandas has no generics at run time


def whole_number(value: object) -> int | None:
    """An integer of Python or NumPy, or a float without a fraction, as an int; else None.

    Numbers that come from R or from JSON are floats.

    Examples
    --------
    >>> whole_number(10.0), whole_number(np.int16(3)), whole_number(2.5), whole_number(True)
    (10, 3, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    is_float = isinstance(value, float | np.floating)
    return None if is_float and not float(value).is_integer() else int(value)
