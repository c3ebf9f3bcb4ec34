"""Training: the loop, its schedule, its recipes, and what it records."""

from vivace.train.loop import TrainOptions, fit
from vivace.train.recipes import RECIPES, Recipe
from vivace.train.state import TrainState

__all__ = ["RECIPES", "Recipe", "TrainOptions", "TrainState", "fit"]
