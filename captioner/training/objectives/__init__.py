"""What training minimizes: cross entropy (with scheduled sampling, REINFORCE for hard attention), self-critical."""

from captioner.training.objectives.base import Objective
from captioner.training.objectives.cross_entropy import CrossEntropy
from captioner.training.objectives.self_critical import SelfCritical

__all__ = ["CrossEntropy", "Objective", "SelfCritical"]
