"""Captions of any pictures by a trained model: ``Captioner.load("models").caption(["holiday.jpg"])``."""

from captioner.captioning.captioner import Captioner
from captioner.captioning.results import Caption, PictureCaptions

__all__ = ["Caption", "Captioner", "PictureCaptions"]
