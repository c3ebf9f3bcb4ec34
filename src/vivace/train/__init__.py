"""Training: the public ``train``, the loop, recipes, and steps for each kind of network."""

from vivace.train.callbacks import Callback
from vivace.train.loop import FitResult, Observer, TrainOptions, fit
from vivace.train.recipe import RECIPES, Recipe
from vivace.train.run import train

__all__ = [
    "RECIPES",
    "Callback",
    "FitResult",
    "Observer",
    "Recipe",
    "TrainOptions",
    "fit",
    "train",
]
