"""Training: recipes, and the loop that ``mnv3-fast train`` runs."""

from mnv3_fast.training.loop import Diverged, Trained, train
from mnv3_fast.training.recipe import Recipe, default_recipe, read_recipe, recipe_names
from mnv3_fast.training.settings import Settings
from mnv3_fast.training.work_dir import NotWritten

__all__ = [
    "Diverged",
    "NotWritten",
    "Recipe",
    "Settings",
    "Trained",
    "default_recipe",
    "read_recipe",
    "recipe_names",
    "train",
]
