"""A hand-made table of a posterior predictive check."""

from __future__ import annotations

import numpy as np
import pandas as pd


def rows(statistic: str, by: str, observed: list[float], predicted: list[float]) -> pd.DataFrame:
    """A check whose interval extends half a unit to both sides of the prediction."""
    centre = np.array(predicted)
    return pd.DataFrame(
        {
            "statistic": statistic,
            "by": by,
            "name": [f"n{i}" for i in range(len(observed))],
            "observed": observed,
            "predicted": predicted,
            "lower": centre - 0.5,
            "upper": centre + 0.5,
            "p_value": 0.5,
        }
    )


CHECK = pd.concat(
    [
        rows("mean", "gene", [1.0, 2.0, 3.0, 9.0], [1.1, 2.2, 5.0, 4.0]),
        rows("correlation", "gene pair", [0.1, np.nan], [0.3, np.nan]),
    ]
)
