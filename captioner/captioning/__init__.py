"""Captions of any images by a trained model: ``Captioner.load().caption(["holiday.jpg"])``."""

from captioner.captioning.captioner import Captioner
from captioner.captioning.results import Caption, ImageCaptions

__all__ = ["Caption", "Captioner", "ImageCaptions"]
