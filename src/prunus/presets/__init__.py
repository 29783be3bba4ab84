"""The methods of the literature as compositions, with their papers."""

from prunus.presets.advice import ADVICE
from prunus.presets.methods import PRESETS
from prunus.presets.names import Recipes, recipes, resolve
from prunus.presets.preset import Measured, Preset

__all__ = ["ADVICE", "PRESETS", "Measured", "Preset", "Recipes", "recipes", "resolve"]
