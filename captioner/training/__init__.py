"""Training of caption decoders on stored features."""

from captioner.training.train import train

__all__ = ["train"]
