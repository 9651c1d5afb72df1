"""From a diagnosis to training decisions: teacher, objective, weights, curriculum and schedule, each with its evidence. Needs no torch."""

from opdscope.advice.files import LoadedRecipe, TokenBins, load_recipe, write_recipe
from opdscope.advice.recipe import Recipe

__all__ = ["LoadedRecipe", "Recipe", "TokenBins", "load_recipe", "write_recipe"]
