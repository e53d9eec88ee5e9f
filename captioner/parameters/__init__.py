"""The parameters of every stage: frozen dataclasses, their checks, and the reader of params.yaml."""

from captioner.parameters.load import load_parameters, parameters_content, parse_parameters
from captioner.parameters.schema import (
    DownloadParameters,
    EvaluateParameters,
    ExtractParameters,
    Parameters,
    RuntimeParameters,
    TrainParameters,
    VocabParameters,
)

__all__ = [
    "DownloadParameters",
    "EvaluateParameters",
    "ExtractParameters",
    "Parameters",
    "RuntimeParameters",
    "TrainParameters",
    "VocabParameters",
    "load_parameters",
    "parameters_content",
    "parse_parameters",
]
