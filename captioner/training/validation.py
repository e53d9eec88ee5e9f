"""What an epoch is judged by: cross entropy and token accuracy, and where a parameter asks for them, scores of greedy
captions."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cached_property

import torch

from captioner.decoder import CaptionDecoder
from captioner.errors import CaptionerError
from captioner.features.store import FeatureReader
from captioner.interrupts import StopSignal
from captioner.metrics import References, Scorer
from captioner.parameters import TrainParameters
from captioner.search import beam_search
from captioner.training.batches import BatchLoader, ordered_batches
from captioner.training.inputs import Inputs
from captioner.training.loss import correct_tokens, summed_cross_entropy
from captioner.training.parallel import Group

_CAPTIONS = 320  # in a batch; decides the last bits of the figures, so it is no parameter of the machine
_PICTURES = 64  # searched at once, as evaluation does by default
SCORED = ("val_bleu_4", "val_cider_d")


def scores_wanted(options: TrainParameters) -> bool:
    """Whether a parameter asks for scores of captions.

    Raises:
        CaptionerError: one does, and pycocoevalcap is not installed.
    """
    named = [("select_by", options.select_by), *(("plateau_on", metric) for metric in options.plateau_on)]
    asked = [(name, metric) for name, metric in named if metric in SCORED]
    if options.scst_epochs:  # judged by CIDEr-D, which the epochs before must have too
        asked.append(("scst_epochs", options.scst_epochs))
    if asked and importlib.util.find_spec("pycocoevalcap") is None:
        name, value = asked[0]
        raise CaptionerError(
            f"train.{name}={value}: this needs pycocoevalcap, which is not installed here; pip install pycocoevalcap==1.2, or take "
            + ("0" if name == "scst_epochs" else "val_cross_entropy or val_token_accuracy")
        )
    return bool(asked)


@torch.no_grad()
def teacher_forced(
    decoder: CaptionDecoder,
    loader: BatchLoader,
    captions: int,
    group: Group = Group(),
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """How well the true captions of a split are predicted, word by word. Batches are dealt out to the group's processes
    in turn.

    Args:
        decoder: in eval mode.
        loader: of the split.
        captions: in a batch, which decides the last bits of the figures.
        group: the processes that share the work; all get the same figures.
        stop: asked before each batch.

    Returns:
        ``cross_entropy`` in nats a token and ``token_accuracy``, both over all words and <end>; None where any
        process's ``stop`` said so.
    """
    device = next(decoder.parameters()).device
    total, correct, count, stopped = 0.0, 0, 0, False
    for features, tokens in loader.stream(group.share(ordered_batches(loader.table, captions))):
        if stop():
            stopped = True
            break
        outputs = decoder(features.to(device, non_blocking=True), tokens)
        total += summed_cross_entropy(outputs).item()
        correct += int(correct_tokens(outputs))
        count += outputs.targets.numel()
    sums = torch.tensor([total, correct, count, stopped], dtype=torch.float64, device=device)
    total, correct, count, stopped = group.all_reduce_(sums).tolist()
    if stopped:
        return None
    return {"cross_entropy": total / count, "token_accuracy": correct / count}


class Validator:
    """Measures a decoder, which must be in eval mode, on the validation split.

    The processes share the work, and all get the same figures.

    Args:
        inputs: captions and features.
        reader: of the features.
        group: the processes, and the device where the arithmetic runs.
    """

    def __init__(self, inputs: Inputs, reader: FeatureReader, group: Group) -> None:
        self._inputs, self._reader, self._group, self._device = inputs, reader, group, group.device
        self._loader = BatchLoader(inputs.val, inputs.val_rows, reader)

    def teacher_forced(self, decoder: CaptionDecoder, stop: StopSignal) -> dict[str, float] | None:
        """``val_cross_entropy`` in nats a token and ``val_token_accuracy``; None where ``stop`` was requested
        meanwhile."""
        figures = teacher_forced(decoder, self._loader, _CAPTIONS, self._group, lambda: stop.requested)
        return figures and {f"val_{name}": value for name, value in figures.items()}

    def scores(self, decoder: CaptionDecoder, stop: StopSignal) -> dict[str, float] | None:
        """``val_bleu_4`` and ``val_cider_d`` of greedy captions, as the stage ``evaluate`` scores them at beam 1 by
        default."""
        image_ids = list(self._references.texts)
        captions: dict[int, str] = {}
        for batch in self._group.share(
            [image_ids[first : first + _PICTURES] for first in range(0, len(image_ids), _PICTURES)]
        ):
            if stop.requested:
                break
            features = self._reader.read(self._inputs.store.rows(batch)).to(self._device)
            for image, hypotheses in zip(batch, beam_search(decoder, features, beam_size=1), strict=True):
                captions[image] = self._inputs.vocabulary.decode(hypotheses[0].tokens)
        parts = self._group.gather_bytes(json.dumps(list(captions.items())).encode())
        captions = {image: caption for part in parts for image, caption in json.loads(part)}
        if len(captions) < len(image_ids):  # somebody was stopped
            return None
        overall = self._scorer.score(self._references, {image: captions[image] for image in image_ids}).overall
        return {name: overall[name.removeprefix("val_")] for name in SCORED}

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(meteor=False)  # looks for Java, which takes a moment

    @cached_property
    def _references(self) -> References:
        captions = self._inputs.captions
        return self._scorer.references({image: captions.captions(image) for image in captions.image_ids("val")})
