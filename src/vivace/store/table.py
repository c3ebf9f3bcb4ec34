"""Tables as text files, written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vivace.errors import OptionError
from vivace.store.arrays import check_free

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def check_table(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists, or whose ending does not name a format of tables."""
    if path.suffix not in _SEPARATORS:
        raise OptionError(f"{path} must end in .csv or .tsv, which sets the format.")
    check_free(path, overwrite)


def write_table(table: pd.DataFrame, path: Path, index_label: str) -> None:
    """Write ``table`` under a temporary name in the same folder and rename it when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.part")
    try:
        table.to_csv(waiting, sep=_SEPARATORS[path.suffix], index_label=index_label)
        waiting.replace(path)
    finally:
        waiting.unlink(missing_ok=True)
