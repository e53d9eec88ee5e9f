"""The parameters of every stage: frozen dataclasses, their checks, and the reader of params.yaml."""

from captioner.parameters.download import DownloadParameters
from captioner.parameters.evaluate import EvaluateParameters
from captioner.parameters.extract import ExtractParameters
from captioner.parameters.load import load_parameters, parameters_content, parse_parameters
from captioner.parameters.runtime import RuntimeParameters
from captioner.parameters.schema import Parameters
from captioner.parameters.train import TrainParameters
from captioner.parameters.vocab import VocabParameters

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
