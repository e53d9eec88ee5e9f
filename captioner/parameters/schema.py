"""All parameters with their defaults, bounds and help texts: one file for each section of params.yaml.

params.yaml leaves out rare options, which keep their defaults; ``-S '+train.x=...'`` adds them to an experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from captioner.parameters import registries
from captioner.parameters.download import DownloadParameters
from captioner.parameters.evaluate import EvaluateParameters
from captioner.parameters.extract import ExtractParameters
from captioner.parameters.options import option
from captioner.parameters.runtime import RuntimeParameters
from captioner.parameters.train import TrainParameters
from captioner.parameters.vocab import VocabParameters


@dataclass(frozen=True)
class Parameters:
    """params.yaml as a whole."""

    dataset: str = option("scenes", "scenes, coco2014, coco2017, flickr8k, flickr30k, custom, or several joined with +")
    encoder: str = option("squeezenet1_1", "any torchvision classification model, or timm/NAME")
    decoder: str = option("gru", "the caption decoder", choices=registries.decoders)
    attention: str = option(
        "soft",
        "attention mechanism: soft (additive), hard (one sampled position), dot (scaled dot product), multihead, "
        "bilinear, or none (the mean feature); decoder=transformer has an attention of its own and wants soft",
        choices=registries.attentions,
    )
    seed: int = option(1, "training: initial weights, order of images, dropout", low=0)
    download: DownloadParameters = field(default_factory=DownloadParameters)
    extract: ExtractParameters = field(default_factory=ExtractParameters)
    vocab: VocabParameters = field(default_factory=VocabParameters)
    train: TrainParameters = field(default_factory=TrainParameters)
    evaluate: EvaluateParameters = field(default_factory=EvaluateParameters)
    runtime: RuntimeParameters = field(default_factory=RuntimeParameters)
