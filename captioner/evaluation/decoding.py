"""The model at work on a split: the search with every beam size, and teacher forcing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from captioner.batches import BatchLoader, CaptionTable, ordered_batches
from captioner.cuda_graphs import graphed
from captioner.decoder import Decoder
from captioner.errors import CaptionerError
from captioner.evaluation.inputs import EvaluationInputs
from captioner.features.store import FeatureReader, FeatureStore
from captioner.images.captions import CaptionSet
from captioner.parameters import EvaluateParameters
from captioner.search import (
    BeamStrategy,
    Constraints,
    DiverseStrategy,
    Ensemble,
    Hypothesis,
    SamplingStrategy,
    Strategy,
    prefix_words,
    search,
)
from captioner.teacher_forcing import score_captions, token_metrics
from captioner.vocabulary.vocabulary import Vocabulary

_CAPTIONS = 256  # captions in a batch of teacher forcing


def check_search(options: EvaluateParameters) -> None:
    """Refuse settings that exclude each other.

    Raises:
        CaptionerError: they do; what to change is in the message.
    """
    if options.min_length > options.max_length:
        raise CaptionerError(
            f"evaluate.min_length={options.min_length} is above evaluate.max_length={options.max_length}; lower the "
            "one or raise the other"
        )
    for size in options.beam_sizes:
        if options.search == "diverse" and options.diversity_groups and size % options.diversity_groups:
            raise CaptionerError(
                f"evaluate.diversity_groups={options.diversity_groups} does not divide {size} of evaluate.beam_sizes; "
                "take beam sizes that are multiples of it, or 0: as many groups as hypotheses"
            )


def strategy(options: EvaluateParameters, size: int, image_ids: Sequence[int]) -> Strategy:
    """How ``evaluate.search`` chooses, at one of ``evaluate.beam_sizes``, for a batch of images."""
    if options.search == "diverse":
        return DiverseStrategy(size, options.diversity_groups or size, options.diversity_penalty)
    if options.search == "sample":
        return SamplingStrategy(
            size, image_ids, options.max_length, options.seed, options.temperature, options.top_k, options.top_p
        )
    return BeamStrategy(size)


class SplitDecoder:
    """Searches captions of a split's images.

    Args:
        inputs: decoder, words and features; the decoder moves to ``device``.
        reader: of the features; gives batches on the CPU.
        parameters: search settings.
        device: where the arithmetic runs.

    Raises:
        CaptionerError: ``evaluate.prefix`` has a word that the model does not know, or too many.
    """

    def __init__(
        self, inputs: EvaluationInputs, reader: FeatureReader, parameters: EvaluateParameters, device: torch.device
    ) -> None:
        self.decoder, self.store, self.reader = inputs.decoder.to(device), inputs.store, reader
        self.parameters, self.device = parameters, device
        self._searched = graphed(self.decoder)
        self.prefix = prefix_words(parameters.prefix, inputs.model.vocabulary, parameters.max_length, "evaluate.prefix")

    def captions(
        self,
        image_ids: Sequence[int],
        beam_sizes: Iterable[int],
        advance: Callable[[int], None] = lambda captions: None,
    ) -> dict[int, dict[int, Hypothesis]]:
        """The best caption of every image with every beam size; features are read, projected and made into keys once.

        Args:
            advance: told the number of captions done, batch by batch.

        Returns:
            beam size -> image id -> hypothesis.
        """
        found: dict[int, dict[int, Hypothesis]] = {size: {} for size in beam_sizes}
        for batch in self._batches(image_ids):
            for size, hypotheses in self._search(batch, list(found), attention=False).items():
                found[size].update(zip(batch, hypotheses, strict=True))
                advance(len(batch))
        return found

    def with_attention(self, image_ids: Sequence[int], chosen: Iterable[int], beam_size: int) -> dict[int, Hypothesis]:
        """The captions of the images ``chosen`` among ``image_ids``, with attention.

        They are searched in the batches that ``captions`` made of ``image_ids``: the last bits of a product depend on
            the batch.
        """
        wanted = set(chosen)
        found: dict[int, Hypothesis] = {}
        for batch in self._batches(image_ids):
            if wanted & set(batch):
                [hypotheses] = self._search(batch, [beam_size], attention=True).values()
                found.update(
                    (image, hypothesis) for image, hypothesis in zip(batch, hypotheses, strict=True) if image in wanted
                )
        return found

    def _batches(self, image_ids: Sequence[int]) -> Iterable[Sequence[int]]:
        size = self.parameters.batch_size
        return (image_ids[first : first + size] for first in range(0, len(image_ids), size))

    @torch.no_grad()
    def _search(
        self, image_ids: Sequence[int], beam_sizes: Sequence[int], attention: bool
    ) -> dict[int, list[Hypothesis]]:
        options = self.parameters
        features = self.reader.read(self.store.rows(image_ids)).to(self.device)
        memory = self.decoder.encode(features)
        found = {}
        for size in beam_sizes:
            constraints = Constraints(options.max_length, options.min_length, options.no_repeat_ngram, self.prefix)
            captions = search(
                self._searched,
                memory,
                len(image_ids),
                strategy(options, size, image_ids),
                constraints,
                length_normalisation=options.length_normalisation,
                length_reward=options.length_reward,
                attention=attention,
                device=self.device,
            )
            found[size] = [hypotheses[0] for hypotheses in captions]
        return found


def teacher_forced_metrics(
    decoder: Decoder | Ensemble,
    store: FeatureStore,
    reader: FeatureReader,
    captions: CaptionSet,
    split: str,
    vocabulary: Vocabulary,
    max_length: int,
) -> dict[str, float]:
    """Cross entropy and token accuracy of a split's true captions, as ``captioner.teacher_forcing`` has them.

    Args:
        max_length: longer captions are cut to this many words, as in training.
    """
    table = CaptionTable.build(captions, split, vocabulary, max_length)
    loader = BatchLoader(table, store.rows(table.image_ids), reader)
    sums = score_captions(decoder, loader, ordered_batches(table, _CAPTIONS))
    assert sums is not None  # only ``stop`` ends it early
    return token_metrics(sums)
