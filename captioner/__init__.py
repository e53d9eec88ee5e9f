"""Trainable image captioning on cached CNN features."""

__version__ = "0.1.0"
