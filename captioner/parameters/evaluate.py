"""Section ``evaluate`` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.parameters import registries
from captioner.parameters.options import option


@dataclass(frozen=True)
class EvaluateParameters:
    """Decoding and scoring."""

    search: str = option(
        "beam",
        "beam; diverse: diverse beam search in groups (Vijayakumar et al. 2016); sample: sampling from the model",
        choices=("beam", "diverse", "sample"),
    )
    beam_sizes: tuple[int, ...] = option(
        [1, 3, 5],
        "beam sizes to evaluate, 1 is greedy (with sample: captions sampled for each image, of which the "
        "best-scoring one is kept); the headline size is chosen on validation",
        low=1,
        high=100,
    )
    diversity_groups: int = option(
        0, "diverse only: number of groups, must divide every beam size; 0: one group per beam", low=0, high=100
    )
    diversity_penalty: float = option(
        0.5,
        "diverse only: subtracted from a word's log-probability for each earlier group that chose it at the same step",
        low=0,
        high=100,
    )
    temperature: float = option(
        1.0, "sample only: softmax temperature; below 1 sharper, above 1 flatter", low=0.01, high=100
    )
    top_k: int = option(0, "sample only: sample from the k most likely words; 0: all", low=0)
    top_p: float = option(
        1.0,
        "sample only: nucleus sampling from the fewest most likely words with this total probability; 1: all",
        low=0,
        high=1,
    )
    seed: int = option(1, "sample only: seed; an image's captions do not depend on its batch", low=0)
    prefix: str = option("", "words that every caption begins with, for example 'a picture of'")
    ensemble: tuple[str, ...] = option(
        [],
        "folders of further models with the same vocabulary and features; the probabilities of all models are averaged",
    )
    max_length: int = option(30, "maximum caption length in tokens", low=1, high=1000)
    min_length: int = option(1, "minimum caption length in tokens", low=0, high=1000)
    length_normalisation: float = option(
        1.0, "a hypothesis' log-probability is divided by its length to this power; 0: plain sum", low=0, high=5
    )
    length_reward: float = option(
        0.0,
        "added to a hypothesis' score for each word, a penalty below 0; for use with length_normalisation=0",
        low=-10,
        high=10,
    )
    no_repeat_ngram: int = option(0, "no n-gram of this size occurs twice in a caption; 0: allowed", low=0, high=20)
    select_by: str = option(
        "cider_d", "validation metric that chooses the headline beam size", choices=registries.metrics
    )
    split: str = option(
        "auto",
        "split of the headline scores; auto: test where the data set has test images, else val",
        choices=("auto", "test", "val"),
    )
    batch_size: int = option(64, "images decoded at once", low=1)
    report_images: int = option(
        200,
        "maximum number of randomly chosen images in the report's gallery; 0: a report without images",
        low=0,
        high=5000,
    )
