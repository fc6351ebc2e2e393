"""Degradations: steps with their equations, procedural fields, and recipes that are plain data."""

from unirestorer.degradation.recipe import RANGES, Recipe, compose, degree_words, draw_recipe, strength_name
from unirestorer.degradation.steps import MapFolder

__all__ = ["RANGES", "MapFolder", "Recipe", "compose", "degree_words", "draw_recipe", "strength_name"]
