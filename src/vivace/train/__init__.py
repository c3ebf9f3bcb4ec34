"""Training: the public ``train`` (in ``run``), the loop, recipes, and a step for each network."""

from vivace.train.callbacks import Callback
from vivace.train.loop import FitResult, Observer, TrainOptions, fit
from vivace.train.recipe import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "Callback",
    "FitResult",
    "Observer",
    "Recipe",
    "TrainOptions",
    "fit",
]
