"""Degradations: steps with their equations, procedural fields, and recipes that are plain data."""

from unirestorer.degradation.recipe import RANGES, Recipe, degree, degree_words, draw_recipe, make_step
from unirestorer.degradation.steps import STEPS, MapFolder, Step

__all__ = [
    "RANGES",
    "STEPS",
    "MapFolder",
    "Recipe",
    "Step",
    "degree",
    "degree_words",
    "draw_recipe",
    "make_step",
]
