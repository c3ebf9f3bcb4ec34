"""Import time of vivace, without that of torch and anndata.

Usage: python benchmarks/import_time.py --save
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from statistics import median

from common import provenance, report

REPEATS = 7
CODE = """
import time, torch, anndata
begun = time.perf_counter()
{statement}
print(time.perf_counter() - begun)
"""


def seconds(statement: str) -> list[float]:
    """Seconds of ``statement`` in a fresh process that has imported torch and anndata, sorted."""
    code = CODE.format(statement=statement)
    return sorted(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
        for _ in range(REPEATS)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    result: dict[str, object] = {"benchmark": "import_time", **provenance()}
    for name, statement in (
        ("import vivace", "import vivace"),
        ("and the class SCVI", "import vivace; vivace.SCVI"),
    ):
        times = seconds(statement)
        result[name] = {
            "median_seconds": round(median(times), 3),
            "spread": [round(times[0], 3), round(times[-1], 3)],
        }
    report("import_time", result, args.save)


if __name__ == "__main__":
    main()
