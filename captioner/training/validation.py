"""Metrics of an epoch: cross entropy, token accuracy and, where a parameter asks for them, scores of captions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Hashable
from functools import cached_property

from captioner.batches import BatchLoader, ordered_batches
from captioner.cuda_graphs import graphed
from captioner.decoder import Decoder
from captioner.errors import CaptionerError
from captioner.features.store import FeatureReader
from captioner.metrics import References, Scorer
from captioner.parameters import TrainParameters
from captioner.search import beam_search
from captioner.teacher_forcing import score_captions, token_metrics
from captioner.training.distributed import Group
from captioner.training.inputs import Inputs

_CAPTIONS = 320  # in a batch; decides the last bits of the metrics, so it is no runtime parameter
_IMAGES = 64  # searched at once, as evaluation does by default
SCORES = ("val_bleu_4", "val_cider_d")


def scores_wanted(options: TrainParameters) -> bool:
    """Whether a parameter asks for scores of captions.

    Raises:
        CaptionerError: one does, and pycocoevalcap is not installed.
    """
    named = [("select_by", options.select_by), *(("plateau_on", metric) for metric in options.plateau_on)]
    asked: list[tuple[str, object]] = [(name, metric) for name, metric in named if metric in SCORES]
    if options.scst_epochs:  # selects by CIDEr-D, which the epochs before must have too
        asked.append(("scst_epochs", options.scst_epochs))
    if asked and importlib.util.find_spec("pycocoevalcap") is None:
        name, value = asked[0]
        other = "0" if name == "scst_epochs" else "val_cross_entropy or val_token_accuracy"
        raise CaptionerError(
            f"train.{name}={value}: this needs pycocoevalcap, which is not installed here; "
            f"pip install pycocoevalcap==1.2, or take {other}"
        )
    return bool(asked)


class Validator:
    """Measures a decoder in eval mode on the validation split. The ranks share the work and get the same metrics.

    Args:
        inputs: captions and features.
        reader: of the features.
        group: the ranks, and the device.
        scores: also BLEU-4 and CIDEr-D of greedy captions.
    """

    def __init__(self, inputs: Inputs, reader: FeatureReader, group: Group, scores: bool) -> None:
        self._inputs, self._reader, self._group, self._scores = inputs, reader, group, scores
        self._loader = BatchLoader(inputs.val, inputs.val_rows, reader)
        self._graphed: dict[Decoder, Decoder] = {}  # its graphs serve all epochs

    def metrics(self, decoder: Decoder, stop: Callable[[], bool]) -> dict[str, float] | None:
        """``val_cross_entropy`` in nats a token, ``val_token_accuracy`` and, if asked for, ``SCORES``.

        None where ``stop``, asked between batches, said so on any rank.
        """
        group = self._group
        sums = score_captions(decoder, self._loader, group.shard(ordered_batches(self._inputs.val, _CAPTIONS)), stop)
        if group.any(sums is None)[0] or sums is None:
            return None
        metrics = {f"val_{name}": value for name, value in token_metrics(group.sum(sums)).items()}
        if not self._scores:
            return metrics
        captions = self._captions(decoder, stop)
        if captions is None:
            return None
        overall = self._scorer.score(self._references, captions).overall
        return metrics | {name: overall[name.removeprefix("val_")] for name in SCORES}

    def _captions(self, decoder: Decoder, stop: Callable[[], bool]) -> dict[Hashable, str] | None:
        """Greedy captions of all validation images, as the stage ``evaluate`` searches them at beam 1 by default."""
        ids = self._inputs.captions.image_ids("val")
        searched = self._graphed.setdefault(decoder, graphed(decoder))
        own: dict[int, str] = {}
        for batch in self._group.shard([ids[first : first + _IMAGES] for first in range(0, len(ids), _IMAGES)]):
            if stop():
                break
            features = self._reader.read(self._inputs.store.rows(batch)).to(self._group.device)
            for image, hypotheses in zip(batch, beam_search(searched, features, beam_size=1), strict=True):
                own[image] = self._inputs.vocabulary.decode(hypotheses[0].tokens)
        captions = {image: caption for part in self._group.gather(own) for image, caption in part.items()}
        return {image: captions[image] for image in ids} if len(captions) == len(ids) else None

    @cached_property
    def _scorer(self) -> Scorer:
        # METEOR would look for Java, which takes a moment
        return Scorer(meteor=False, tokenizer=self._inputs.vocabulary.tokenizer)

    @cached_property
    def _references(self) -> References:
        captions = self._inputs.captions
        return self._scorer.references({image: captions.captions(image) for image in captions.image_ids("val")})
