"""How a model's images were made, from its ``config.json``. It imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from captioner.errors import CaptionerError
from captioner.features.reading import Recipe


def read_recipe(path: Path, config: dict[str, Any]) -> Recipe:
    """The recipe in the keys ``images`` and ``preprocessing`` of ``config``; ``path`` names its file in errors.

    Raises:
        CaptionerError: a value is missing or no possible one.
    """
    try:
        stored, seen = config["images"], config["preprocessing"]
        recipe = Recipe(
            stored["image_size"],
            stored["jpeg_quality"],
            seen["fit"],
            seen["image_size"],
            seen.get("resample", Recipe.resample),
            seen.get("crop_pct", Recipe.crop_pct),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CaptionerError(
            f"{path}: what it says of its images is damaged ({error}); copy the model's folder again"
        ) from error
    numbers = (recipe.image_size, recipe.jpeg_quality, recipe.side)
    if (
        not all(type(number) is int and 0 < number <= 2048 for number in numbers)
        or recipe.jpeg_quality > 100
        or recipe.fit not in ("squash", "crop")
        or recipe.resample not in [filter.name.lower() for filter in Image.Resampling]
        or type(recipe.crop_pct) not in (int, float)
        or not 0 < recipe.crop_pct <= 1
    ):
        raise CaptionerError(f"{path}: what it says of its images is damaged ({recipe}); copy the model's folder again")
    return recipe
