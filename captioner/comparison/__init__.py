"""Experiments beside one another: their scores with confidence intervals, and whether they differ by more than
chance."""

from captioner.comparison import table
from captioner.comparison.bootstrap import RESAMPLES, p_value, resample
from captioner.comparison.comparison import Comparison, compare
from captioner.comparison.experiments import Run, read_runs

__all__ = ["RESAMPLES", "Comparison", "Run", "compare", "p_value", "read_runs", "resample", "table"]
