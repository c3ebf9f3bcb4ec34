"""Training: the loop, its schedule, its recipes, and what it records."""

from vivace.state import TrainState
from vivace.train.callbacks import Callback, Listeners
from vivace.train.loop import fit
from vivace.train.options import (
    TrainOptions,
    max_steps_of,
    patience_of,
    recipe_of,
)
from vivace.train.recipes import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "Callback",
    "Listeners",
    "Recipe",
    "TrainOptions",
    "TrainState",
    "fit",
    "max_steps_of",
    "patience_of",
    "recipe_of",
]
