"""From a diagnosis to training decisions: teacher, objective, weights, curriculum and schedule, each with its evidence. Needs no torch."""

from opdscope.advice.files import LoadedRecipe, TokenBins, load_recipe, write_recipe
from opdscope.advice.making import Advice, advise
from opdscope.advice.recipe import Recipe
from opdscope.advice.text import advice_data, render_advice

__all__ = ["Advice", "LoadedRecipe", "Recipe", "TokenBins", "advice_data", "advise", "load_recipe", "render_advice", "write_recipe"]
