"""Section ``train`` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.parameters import registries
from captioner.parameters.options import option


@dataclass(frozen=True)
class TrainParameters:
    """The decoder and its training."""

    hidden_size: int = option(256, "size of the decoder's hidden state; width of the transformer", low=1)
    layers: int = option(
        1,
        "stacked layers; in gru and lstm attention queries the bottom layer, the output reads the top layer",
        low=1,
        high=16,
    )
    attention_size: int = option(256, "size of queries and keys of soft, hard, dot and multihead attention", low=1)
    heads: int = option(
        4,
        "heads of multihead attention, must divide attention_size and feature_size; "
        "heads of the transformer, must divide hidden_size",
        low=1,
    )
    feature_size: int = option(256, "size of a projected feature (the encoder embedding)", low=1)
    norm: str = option(
        "layer",
        "normalisation of projected features: layer (LayerNorm over channels), "
        "batch (BatchNorm over all grid positions of a batch) or none",
        choices=registries.norms,
    )
    position: str = option(
        "learned",
        "position embedding added to the projected features: learned, sinusoidal (of row and column) or none",
        choices=("learned", "sinusoidal", "none"),
    )
    word_position: str = option(
        "learned",
        "decoder=transformer only: position embedding of the words: learned or sinusoidal",
        choices=("learned", "sinusoidal"),
    )
    dropout: float = option(
        0.1,
        "dropout on word vectors, projected features, between layers (transformer: on what each part of a layer adds) "
        "and before the vocabulary layer",
        low=0,
        high=0.95,
    )
    tune_embeddings: bool = option(False, "also train the word vectors; false keeps them frozen")
    embedding_size: int = option(
        0, "project the word vectors to this size with a learned matrix; 0: keep their own size", low=0
    )
    tie_weights: bool = option(
        False,
        "use the word vectors as the vocabulary layer's weight (frozen if they are); "
        "a learned matrix matches the sizes where they differ",
    )
    batch_size: int = option(64, "captions in a step", low=1)
    precision: str = option(
        "fp32",
        "precision of large matrix products in training; bf16 is faster where supported, states and sums stay fp32",
        choices=("fp32", "bf16"),
    )
    captions_per_image: int = option(
        0, "captions of one image in a step: 0 all of them, 1 samples captions independently", low=0
    )
    group_by_length: bool = option(
        False,
        "batches of images with captions of similar length: less padding for large batches on a GPU; "
        "small batches learn less from it",
    )
    epochs: int = option(
        6, "maximum number of cross-entropy epochs; 0 with init_from: self-critical training alone", low=0
    )
    init_from: str | None = option(
        None,
        "folder of a trained model with the same vocabulary, features and sizes, "
        "whose weights training starts from; null: random initialisation",
    )
    optimizer: str = option("adam", "the optimizer", choices=registries.optimizers)
    learning_rate: float = option(2e-3, "learning rate of the decoder", low=0)
    projection_learning_rate: float = option(2e-3, "learning rate of the feature projection", low=0)
    weight_decay: float = option(
        0.0,
        "L2 penalty on weights, not on biases, norms, word vectors and positions; decoupled with adamw",
        low=0,
    )
    momentum: float = option(0.0, "sgd and rmsprop only", low=0, high=0.9999)
    accumulate: int = option(1, "batches in one optimizer step (gradient accumulation)", low=1)
    ema: float = option(
        0.0,
        "decay of an exponential moving average of the weights, which is validated and saved, "
        "for example 0.999; 0: none",
        low=0,
        high=0.999999,
    )
    warmup_steps: int = option(0, "steps of linear learning-rate warm-up", low=0)
    step_every: int = option(0, "multiply the learning rates by step_factor every N steps; 0: never", low=0)
    step_factor: float = option(0.5, "factor of step_every", low=0, high=1)
    cosine: bool = option(
        False,
        "cosine decay of the learning rates to zero at the last of train.epochs; restarts for self-critical training",
    )
    clip: float = option(10.0, "maximum gradient norm; 0: no clipping", low=0)
    plateau_on: tuple[str, ...] = option(
        ["val_cross_entropy"],
        "metrics that each lower the learning rates when they stop improving",
        choices=registries.validation_metrics,
    )
    plateau_patience: int = option(
        1, "epochs without an improvement of a plateau_on metric before the learning rates are lowered", low=0
    )
    plateau_factor: float = option(0.5, "factor of the learning rates on a plateau", low=0.01, high=1)
    select_by: str = option(
        "val_cross_entropy",
        "metric that selects the best epoch, whose weights are saved",
        choices=registries.validation_metrics,
    )
    patience: int = option(4, "epochs without an improvement of select_by before training stops", low=1)
    gap_patience: int = option(
        0,
        "stop after this many consecutive epochs in which validation minus training cross entropy grew; 0: never",
        low=0,
    )
    scst_epochs: int = option(
        0,
        "maximum number of self-critical epochs (reward: CIDEr-D of sampled captions), "
        "which start from the best weights of train.epochs",
        low=0,
    )
    scst_samples: int = option(5, "self-critical training: captions sampled for each image of a step", low=2)
    scst_baseline: str = option(
        "mean",
        "self-critical training: baseline of a sample's reward, mean of the image's other samples or "
        "greedy (its greedy caption)",
        choices=("mean", "greedy"),
    )
    scst_learning_rate: float = option(
        5e-5, "self-critical training: learning rate of decoder and feature projection", low=0
    )
    scst_bleu_weight: float = option(
        0.0, "self-critical training: the reward is CIDEr-D plus this times BLEU-4, both in percent", low=0
    )
    scst_dropout: bool = option(
        False, "self-critical training: dropout in the differentiated pass; captions are sampled without it"
    )
    sampling: str = option(
        "none",
        "scheduled sampling (Bengio et al. 2015): how the probability of feeding back the decoder's own words rises",
        choices=("none", "linear", "exponential", "inverse_sigmoid"),
    )
    sampling_start: int = option(1, "scheduled sampling: first epoch", low=1)
    sampling_epochs: int = option(
        5, "scheduled sampling: epochs over which the probability rises to sampling_rate", low=1
    )
    sampling_rate: float = option(
        0.25, "scheduled sampling: final probability that an input word is sampled from the decoder", low=0, high=1
    )
    label_smoothing: float = option(
        0.0, "probability mass of the target distribution that is spread over all words", low=0, high=0.99
    )
    doubly_stochastic: float = option(
        0.0,
        "weight of the penalty that makes each position's attention sum to 1 over time (Xu et al. 2015, section 4.2.1)",
        low=0,
    )
    hard_reinforce: float = option(
        0.1,
        "attention=hard only: weight of the REINFORCE term; 1 is the whole gradient "
        "(Xu et al. 2015, equation 11), less has less variance",
        low=0,
    )
    hard_entropy: float = option(
        0.01, "attention=hard only: weight of the entropy bonus on the attention distribution", low=0
    )
    tensorboard: bool = option(
        False, "also write the learning curves as TensorBoard's event files, into results/train/tensorboard/"
    )
