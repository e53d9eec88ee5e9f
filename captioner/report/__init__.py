"""A page that shows experiments: scores, curves, and images with their captions and where the decoder looked. It
opens from disk."""

from captioner.report.page import read_page, render

__all__ = ["read_page", "render"]
