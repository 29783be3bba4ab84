"""The methods of the literature as compositions, with their papers."""

from prunus.presets.advice import ADVICE
from prunus.presets.methods import PRESETS, Measured, Preset
from prunus.presets.names import Recipes, recipes, resolve

__all__ = ["ADVICE", "PRESETS", "Measured", "Preset", "Recipes", "recipes", "resolve"]
