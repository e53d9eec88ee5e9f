"""Every parameter with its default, its bounds and one line of help.

A field's metadata holds ``help``, and where they apply ``choices``, ``low``, ``high`` (inclusive). Fields that
params.yaml leaves out are rare options; ``-S '+train.x=...'`` adds them.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any


def option(
    default: Any, help: str, *, choices: tuple | None = None, low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field with its help and bounds; a list default is copied for each instance."""
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    if isinstance(default, (list, tuple)):
        return field(default=tuple(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parameter_name(field: Field) -> str:
    """The name in params.yaml: the field's, without the underscore that sets it apart from a word of Python
    (``from_``)."""
    return field.name.rstrip("_")


@dataclass(frozen=True)
class DownloadParameters:
    """Where pictures and captions come from, and how pictures are stored."""

    version: int = option(1, "raised when this stage's result changes for the same parameters", low=1)
    seed: int = option(1, "draws the bundled scenes and the 85/15 split", low=0)
    root: str | None = option(
        None, "folder with a local copy of the data set, complete or partial; null: bundled or from the network"
    )
    captions: str = option(
        "sources/custom.csv",
        "for dataset=custom: CSV or JSONL of image,caption[,split]; images are relative to root or to this file",
    )
    from_: str = option(
        "archives",
        "COCO over the network: the official archives, or picture by picture from their URLs",
        choices=("archives", "urls"),
    )
    split: str = option("own", "own: the data set's; karpathy: fetched; or the path of a Karpathy-style dataset_*.json")
    limit: int = option(0, "only the first N pictures of each split, for trials; 0: all", low=0)
    image_size: int = option(
        256, "shorter side of the stored JPEGs in pixels; pictures are never enlarged", low=32, high=2048
    )
    max_missing: float = option(
        0.02, "share of listed pictures that may be missing or unreadable before it is an error", low=0, high=1
    )
    test_share: float = option(1.0, "share of the data set's test pictures that is kept", low=0, high=1)
    val_share: float = option(
        0.15,
        "share of the training pictures held out for validation where the data set brings no validation split",
        low=0,
        high=0.9,
    )
    jpeg_quality: int = option(90, "quality of re-encoded JPEGs", low=10, high=100)
    scenes: int = option(6000, "for dataset=scenes: how many scenes are drawn", low=20, high=10_000_000)


@dataclass(frozen=True)
class ExtractParameters:
    """How a picture becomes a grid of features."""

    version: int = option(2, "raised when this stage's result changes for the same parameters", low=1)
    seed: int = option(1, "draws the augmented views, and the weights where they are random", low=0)
    weights: str = option(
        "bundled", "bundled, imagenet, random, or the path of a state dict or of a folder of <encoder>.pth|.safetensors"
    )
    fit: str = option(
        "squash",
        "how a picture becomes square: squash keeps the edges, crop keeps the aspect",
        choices=("squash", "crop"),
    )
    grid: int | str = option(
        7, "pool the last spatial map to grid x grid positions; native keeps the encoder's own map"
    )
    views: int = option(1, "stored views a picture: the plain one, then augmented ones", low=1, high=64)
    precision: str = option(
        "auto",
        "arithmetic of the encoder; auto: bf16 where the processor has it, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    batch_size: int = option(32, "pictures in one block of rows", low=1, high=4096)
    hflip: float = option(0.5, "augmented views: probability of a horizontal flip", low=0, high=1)
    vflip: float = option(0.0, "augmented views: probability of a vertical flip", low=0, high=1)
    crop: str = option(
        "resized",
        "augmented views: none, random (a window of 7/8), resized (random area and aspect) or centre",
        choices=("none", "random", "resized", "centre"),
    )
    crop_scale: float = option(
        0.5, "augmented views: smallest share of the picture's area that a resized crop keeps", low=0.05, high=1
    )
    image_size: int = option(224, "side of the square picture that the encoder sees, in pixels", low=32, high=1024)


@dataclass(frozen=True)
class VocabParameters:
    """Which words the decoder knows, and their vectors."""

    seed: int = option(1, "draws the vectors of words that the vectors file lacks", low=0)
    min_count: int = option(5, "words seen fewer times in the training captions become <unk>", low=1)
    max_length: int = option(30, "tokens of a caption that are kept, without <start> and <end>", low=1, high=1000)
    vectors: str = option(
        "glove",
        "glove (6B: 50d from its package, else the official archive), none (all random), or a path: GloVe text file or glove.6B.zip",
    )
    dimension: int = option(50, "size of a word vector; glove has 50, 100, 200, 300", low=1, high=4096)


VALIDATION_METRICS = ("val_cross_entropy", "val_token_accuracy", "val_bleu_4", "val_cider_d")


@dataclass(frozen=True)
class TrainParameters:
    """The decoder and how it learns."""

    hidden_size: int = option(256, "units of the decoder", low=1)
    layers: int = option(
        1, "recurrent cells one above the other; attention goes by the lowest, words by the highest", low=1, high=16
    )
    attention_size: int = option(256, "size of the query and keys of soft, hard, dot and multihead attention", low=1)
    heads: int = option(4, "heads of multihead attention; they divide attention_size and feature_size", low=1)
    feature_size: int = option(256, "size of a projected feature (the encoder embedding)", low=1)
    norm: str = option(
        "layer",
        "normalisation of projected features: layer (of each one over its numbers), batch (of each number over all cells of a batch's pictures; in evaluation with running statistics) or none",
        choices=("layer", "batch", "none"),
    )
    position: str = option(
        "learned",
        "what is added to the projected feature of each grid cell: a learned vector, sines of its row and column (sinusoidal), or none",
        choices=("learned", "sinusoidal", "none"),
    )
    dropout: float = option(
        0.1,
        "dropout on word vectors, projected features, between layers and before the vocabulary layer",
        low=0,
        high=0.95,
    )
    tune_embeddings: bool = option(False, "also train the word vectors; false keeps them frozen")
    embedding_size: int = option(
        0,
        "another size than the word vectors' own, to which a learned matrix takes them, frozen or tuned; 0: their own",
        low=0,
    )
    tie_weights: bool = option(
        False,
        "the vocabulary layer's weight is the word vectors themselves, frozen with them; a learned matrix makes its input their size where hidden_size is another",
    )
    batch_size: int = option(64, "captions in a step", low=1)
    precision: str = option(
        "fp32",
        "arithmetic of the large matrix products in training; bf16 (not on every processor) is faster, states and sums stay fp32",
        choices=("fp32", "bf16"),
    )
    captions_per_image: int = option(0, "captions of one picture in a step: 0 all of them, 1 independent draws", low=0)
    epochs: int = option(6, "the most epochs; 0, with init_from: self-critical training alone", low=0)
    init_from: str | None = option(
        None,
        "folder of a trained model with the same words, features and sizes, whose weights training begins from; null: fresh ones",
    )
    optimizer: str = option(
        "adam", "how gradients become steps", choices=("adam", "adamw", "sgd", "rmsprop", "adagrad")
    )
    learning_rate: float = option(2e-3, "decoder", low=0)
    projection_learning_rate: float = option(2e-3, "feature projection", low=0)
    weight_decay: float = option(
        0.0,
        "of weights, not of biases, norms, word vectors, positions; an L2 penalty, with adamw decoupled from the gradient",
        low=0,
    )
    momentum: float = option(0.0, "sgd and rmsprop only", low=0, high=0.9999)
    accumulate: int = option(1, "batches that make one step of the optimiser", low=1)
    ema: float = option(
        0.0,
        "decay of a moving average of the weights, which is validated and published, for example 0.999; 0: none",
        low=0,
        high=0.999999,
    )
    warmup_steps: int = option(0, "steps in which the learning rates rise from nothing", low=0)
    step_every: int = option(
        0, "steps after which the learning rates fall by step_factor, again and again; 0: never", low=0
    )
    step_factor: float = option(0.5, "factor of step_every", low=0, high=1)
    cosine: bool = option(
        False,
        "the learning rates fall along a cosine, to zero at the end of the last of train.epochs, and anew in self-critical training",
    )
    clip: float = option(10.0, "largest gradient norm; 0: no clipping", low=0)
    plateau_on: tuple[str, ...] = option(
        ["val_cross_entropy"],
        "figures that each make the learning rates fall when they stop improving",
        choices=VALIDATION_METRICS,
    )
    plateau_patience: int = option(
        1, "epochs without an improvement (of a figure of plateau_on) before the learning rates fall", low=0
    )
    plateau_factor: float = option(0.5, "factor by which the learning rates fall on a plateau", low=0.01, high=1)
    select_by: str = option(
        "val_cross_entropy",
        "the figure by which the best epoch is chosen, whose weights are published",
        choices=VALIDATION_METRICS,
    )
    patience: int = option(4, "epochs without an improvement of select_by before training stops", low=1)
    gap_patience: int = option(
        0,
        "epochs in a row in which validation minus training cross entropy grew before training stops; 0: no limit",
        low=0,
    )
    scst_epochs: int = option(
        0,
        "the most epochs of self-critical training on sampled captions' CIDEr-D, from the best weights of train.epochs",
        low=0,
    )
    scst_samples: int = option(5, "self-critical training: captions drawn for each picture of a step", low=2)
    scst_baseline: str = option(
        "mean",
        "self-critical training: a sample's reward is compared with the mean of the picture's other samples, or with its greedy caption's",
        choices=("mean", "greedy"),
    )
    scst_learning_rate: float = option(5e-5, "self-critical training: decoder and feature projection", low=0)
    scst_bleu_weight: float = option(
        0.0, "self-critical training: the reward is CIDEr-D (0 to 10) plus this times BLEU-4 (0 to 1)", low=0
    )
    scst_dropout: bool = option(
        False,
        "self-critical training: dropout in the pass that is differentiated, as in cross entropy; captions are drawn without it",
    )
    sampling: str = option(
        "none",
        "scheduled sampling (Bengio et al. 2015): the way in which the share of input words that the decoder draws itself rises from 0",
        choices=("none", "linear", "exponential", "inverse_sigmoid"),
    )
    sampling_start: int = option(1, "scheduled sampling: epoch in which it begins", low=1)
    sampling_epochs: int = option(5, "scheduled sampling: epochs in which the share rises to sampling_rate", low=1)
    sampling_rate: float = option(
        0.25, "scheduled sampling: final share of input words that the decoder draws", low=0, high=1
    )
    label_smoothing: float = option(
        0.0, "share of the target distribution that is spread over all words", low=0, high=0.99
    )
    doubly_stochastic: float = option(
        0.0, "weight of the penalty that makes attention look everywhere once (Xu et al. 2015, section 4.2.1)", low=0
    )
    hard_reinforce: float = option(
        0.1,
        "attention=hard only: weight of the REINFORCE term by which the drawn positions are learned; 1: the whole gradient (Xu et al. 2015, equation 11), less: less noise",
        low=0,
    )
    hard_entropy: float = option(
        0.01,
        "attention=hard only: weight of the entropy of the positions' probabilities, which keeps them from settling early",
        low=0,
    )


@dataclass(frozen=True)
class EvaluateParameters:
    """Decoding and scoring."""

    search: str = option(
        "beam",
        "beam; diverse: beam search in groups that avoid one another's words (Vijayakumar et al. 2016); sample: captions drawn from the model",
        choices=("beam", "diverse", "sample"),
    )
    beam_sizes: tuple[int, ...] = option(
        [1, 3, 5],
        "beam sizes to run (sample: captions drawn of each picture, of which the best-scoring is taken); 1 is greedy; the headline one is chosen on validation",
        low=1,
        high=100,
    )
    diversity_groups: int = option(
        0, "diverse only: groups, which divide every one of beam_sizes; 0: as many as hypotheses", low=0, high=100
    )
    diversity_penalty: float = option(
        0.5,
        "diverse only: what a word's log-probability loses for each group before that took it at the same step",
        low=0,
        high=100,
    )
    temperature: float = option(1.0, "sample only: below 1 sharper, above 1 flatter than the model", low=0.01, high=100)
    top_k: int = option(0, "sample only: draw from this many likeliest words; 0: all", low=0)
    top_p: float = option(
        1.0, "sample only: draw from the fewest likeliest words whose probabilities reach this; 1: all", low=0, high=1
    )
    seed: int = option(1, "sample only: draws the captions; a picture's are the same whatever batch it is in", low=0)
    prefix: str = option("", "words that every caption begins with, for example 'a picture of'")
    ensemble: tuple[str, ...] = option(
        [],
        "folders of further models with the same words and features, whose probabilities are averaged with the trained one's",
    )
    max_length: int = option(30, "longest caption in tokens", low=1, high=1000)
    min_length: int = option(1, "shortest caption in tokens", low=0, high=1000)
    length_normalisation: float = option(
        1.0, "a hypothesis' log-probability is divided by its length to this power; 0: plain sum", low=0, high=5
    )
    length_reward: float = option(
        0.0,
        "added to a hypothesis' score for each of its words, below 0 a penalty; of use where length_normalisation is 0",
        low=-10,
        high=10,
    )
    no_repeat_ngram: int = option(0, "no n-gram of this size twice in a caption; 0: allowed", low=0, high=20)
    select_by: str = option(
        "cider_d",
        "validation metric that chooses the headline beam size",
        choices=("bleu_4", "cider_d", "rouge_l", "meteor"),
    )
    split: str = option(
        "auto",
        "the split that the headline scores are for; auto: test where the data set has test pictures, else val",
        choices=("auto", "test", "val"),
    )
    batch_size: int = option(64, "pictures searched at once", low=1)
    report_pictures: int = option(
        200, "the most pictures in the report's gallery, drawn by lot; 0: a report without pictures", low=0, high=5000
    )


@dataclass(frozen=True)
class RuntimeParameters:
    """What cannot change a result: no stage lists this section and no fingerprint contains it."""

    device: str = option("auto", "cpu, cuda, cuda:N; auto: a GPU where there is one")
    workers: int = option(0, "processes that decode pictures; 0: one a core, beside a GPU, at most 16", low=0, high=256)
    threads: int = option(0, "threads of arithmetic in a process; 0: its share of the cores", low=0, high=1024)
    features_on: str = option(
        "auto",
        "where training reads features: gpu or ram (whole file), disk; auto: the first that fits",
        choices=("auto", "gpu", "ram", "disk"),
    )
    checkpoint_seconds: float = option(60.0, "training: seconds between saved states within an epoch", low=0)
    download_cache: str = option("~/.cache/captioner", "folder where downloaded archives are kept")
    retries: int = option(5, "attempts for each download before it fails", low=1, high=100)
    timeout: float = option(30.0, "seconds without a byte before a download attempt is given up", low=0.1)
    connections: int = option(16, "pictures downloaded at once (download.from=urls)", low=1, high=256)
    processes: int = option(
        0, "processes of extraction and of training on one machine; 0: one a GPU, one on a CPU", low=0, high=64
    )


@dataclass(frozen=True)
class Parameters:
    """params.yaml as a whole."""

    dataset: str = option("scenes", "scenes, coco2014, coco2017, flickr8k, flickr30k, custom, or several joined with +")
    encoder: str = option("squeezenet1_1", "any torchvision classification model")
    decoder: str = option("gru", "the recurrent cell", choices=("gru", "lstm"))
    attention: str = option(
        "soft",
        "how the grid is summed up: soft (additive), hard (one position, drawn in training), dot (scaled), multihead, bilinear, or none (the mean feature)",
        choices=("soft", "hard", "dot", "multihead", "bilinear", "none"),
    )
    seed: int = option(1, "training: initial weights, order of pictures, dropout", low=0)
    download: DownloadParameters = field(default_factory=DownloadParameters)
    extract: ExtractParameters = field(default_factory=ExtractParameters)
    vocab: VocabParameters = field(default_factory=VocabParameters)
    train: TrainParameters = field(default_factory=TrainParameters)
    evaluate: EvaluateParameters = field(default_factory=EvaluateParameters)
    runtime: RuntimeParameters = field(default_factory=RuntimeParameters)
