"""A batch that fills up a mould counts as it does alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.decoder.mould import Mould
from captioner.decoder.packing import Packing, caption_lengths
from captioner.parameters import TrainParameters
from captioner.training.reinforce import Reinforce
from captioner.training.step import backward
from tests.decoder.examples import make_decoder, make_features, make_tokens

BATCHES = [
    [[4, 1, -1], [7, -1, -1], [2, 2, 3], [1, 6, -1]],
    [[3], [2]],
    [[0, 5, 5, 5]],
    [[-1, 2], [1, -1], [-1, -1], [8, 8], [0, 3], [2, 2]],
]
TOKENS = [make_tokens(lengths, seed) for seed, lengths in enumerate(BATCHES)]
CPU = torch.device("cpu")


def lengths(tokens: Tensor) -> np.ndarray:
    return caption_lengths(tokens.numpy())


def outcome(
    model: CaptionDecoder, features: Tensor, packing: Packing, options: TrainParameters
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    figures = backward(model, features, packing, 1 / 7, torch.tensor(1 / 3, dtype=torch.float64), options, None)
    return figures, {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("options", [{}, {"doubly_stochastic": 0.7, "label_smoothing": 0.1}])
@pytest.mark.parametrize(
    ("decoder", "attention", "shape"),
    [
        ("gru", "soft", {}),
        ("lstm", "soft", {"layers": 2, "tie_weights": True}),
        ("gru", "multihead", {}),
        ("lstm", "none", {}),
        ("gru", "hard", {}),
    ],
)
def test_loss_and_gradients_are_those_without_it(decoder: str, attention: str, shape: dict, options: dict) -> None:
    model, mould = make_decoder(decoder, attention, **shape), Mould.of(map(lengths, TOKENS))
    for number, tokens in enumerate(TOKENS):
        alone, filling = make_features(len(tokens), number), make_features(mould.images, 99)
        filling[: len(tokens)] = alone
        expected, gradients = outcome(model, alone, Packing.of(tokens, CPU), TrainParameters(**options))
        packing = mould.packing(torch.from_numpy(mould.pour(tokens)))
        assert len(packing.targets) > int(packing.real.sum()) == int(lengths(tokens).sum())
        found, filled = outcome(model, filling, packing, TrainParameters(**options))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        assert filled.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                filled[name], gradient, rtol=1e-9, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_what_hard_attention_learns_by_is_that_without_it() -> None:
    tokens, mould = TOKENS[0], Mould.of(map(lengths, TOKENS))
    reinforce = Reinforce(make_decoder("gru", "hard"), TrainParameters(hard_reinforce=0.9, hard_entropy=0.3))
    plain, filled = Packing.of(tokens, CPU), mould.packing(torch.from_numpy(mould.pour(tokens)))
    generator = torch.Generator().manual_seed(1)
    of_token = torch.rand(mould.images * mould.captions, len(mould.steps), 6, generator=generator, dtype=torch.float64)
    results = []
    for packing, captions in ((plain, tokens.shape[1]), (filled, mould.captions)):
        caption = packing.caption // captions * mould.captions + packing.caption % captions  # numbered as in the mould
        values = of_token[caption, packing.step]
        weights = values.softmax(-1).requires_grad_()
        positions = torch.where(values[:, 0] < 0.3, -1, (values[:, 1] * 6).long())
        loss, figures = reinforce.loss(weights, positions, -packing.masked(values[:, 2]), packing)
        loss.backward()
        gradient = weights.grad if packing.real is None else weights.grad[packing.real]
        results.append((loss.detach(), figures, gradient.sum(0)))
        assert packing.real is None or not weights.grad[~packing.real].any()
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected)


def test_words_stand_where_they_stood() -> None:
    tokens, mould = TOKENS[0], Mould.of(map(lengths, TOKENS))
    packing = mould.packing(torch.from_numpy(mould.pour(tokens)))
    image, k = packing.caption // mould.captions, packing.caption % mould.captions
    real = packing.real
    assert torch.equal(packing.inputs[real], tokens[image[real], k[real], packing.step[real]])
    assert torch.equal(packing.targets[real], tokens[image[real], k[real], packing.step[real] + 1])
    assert len(set(zip(packing.caption.tolist(), packing.step.tolist()))) == len(packing.caption)
    for step in packing.steps:
        assert (
            len(step.place) == step.rows == len(step.place.unique())
            and int(step.place.max()) < step.images * step.slots
        )


def test_shapes_hold_all_batches_and_are_rounded_up() -> None:
    mould = Mould.of(map(lengths, TOKENS))
    assert (mould.images, mould.captions, len(mould.steps)) == (6, 4, 9)  # <end> is a step too
    assert mould.steps[0] == (8, 5, 4) and mould.steps[8] == (2, 1, 2)  # by hand; too small to be rounded
    parts = [Mould.of([lengths(tokens)]) for tokens in TOKENS]
    assert parts[0] | parts[1] | parts[2] | parts[3] == mould and mould | parts[2] == mould
    large = Mould.of([np.full((300, 5), 3)[:290], np.array([[2] * 5] * 300)])
    # in units of 23 rows and 4 pictures; no more than there is room for
    assert large.steps == ((1500, 300, 5), (1500, 300, 5), (1460, 292, 5))


def test_waste_is_what_one_picture_of_many_captions_does_to_the_others() -> None:
    alike = [np.full((64, 5), 9)] * 6
    assert Mould.of(alike).waste == 1
    assert Mould.of([*alike, np.full((1, 320), 9)]).waste == pytest.approx(
        64 * 320 / 320
    )  # every batch has 320 cells a step
    assert Mould.of([np.full((2, 2), 3), np.full((2, 1), 3)]).waste == pytest.approx(12 / ((12 + 6) / 2))


def test_a_batch_that_does_not_fit_is_refused() -> None:
    mould = Mould.of([lengths(TOKENS[1])])
    for tokens in (TOKENS[0], TOKENS[2]):
        with pytest.raises(ValueError, match="mould"):
            mould.pour(tokens)
    with pytest.raises(ValueError, match="without a token"):
        mould.pour(torch.zeros(1, 1, 3, dtype=torch.int64))
