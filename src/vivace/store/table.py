"""Tables as text files, written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vivace.store.place import written_whole

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = tuple(_SEPARATORS)


def write_table(table: pd.DataFrame, path: Path, index_label: str) -> None:
    """Write ``table``, completely or not at all; what is there is replaced."""
    with written_whole(path, failures=Exception) as new:
        table.to_csv(new, sep=_SEPARATORS[path.suffix], index_label=index_label)
