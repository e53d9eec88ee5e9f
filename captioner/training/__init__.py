"""Training: ``stage.train`` reads, checks and publishes; ``train.fit`` is the loop."""

from captioner.training.stage import read_inputs, train

__all__ = ["read_inputs", "train"]
