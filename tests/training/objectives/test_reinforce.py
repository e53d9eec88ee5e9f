"""What hard attention learns by, against the enumeration of every path that a tiny decoder can look along."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from captioner.batches import inputs_and_targets
from captioner.decoder import Decoder, DecoderConfig, build_decoder, unmasked
from captioner.decoder.attention import hard
from captioner.parameters import TrainParameters
from captioner.training.objectives import CrossEntropy, SelfCritical
from captioner.training.optimizers import build_optimizer, set_rates
from captioner.vocabulary.vocabulary import END, START
from tests.decoder.slow import slow_logits
from tests.training.objectives.steps import step

VOCABULARY, CHANNELS, POSITIONS = 9, 5, 3
CAPTION = torch.tensor([START, 6, 4, END])
RAGGED = torch.tensor(
    [
        [[START, 5, 6, END, 0, 0], [START, 4, END, 0, 0, 0], [START, 7, 8, 4, END, 0]],
        [[START, 8, 4, 6, 5, END], [0] * 6, [0] * 6],
        [[START, 7, END, 0, 0, 0], [START, 4, 4, END, 0, 0], [0] * 6],
    ]
)


def make_decoder(cell: str = "gru") -> Decoder:
    torch.manual_seed(0)
    settings = DecoderConfig(
        cell, "hard", VOCABULARY, 3, CHANNELS, POSITIONS, feature_size=4, hidden_size=5, attention_size=3, dropout=0.0
    )
    decoder = build_decoder(settings).double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return decoder


def make_features(images: int) -> Tensor:
    return torch.randn(images, POSITIONS, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(decoder: Decoder) -> list[Tensor]:
    return [parameter for parameter in decoder.parameters() if parameter.requires_grad]


def gradient_of(loss: Tensor, decoder: Decoder) -> Tensor:
    found = torch.autograd.grad(loss, trained(decoder))
    return torch.cat([part.flatten() for part in found])


def step_gradient(
    decoder: Decoder, batches: list[tuple[Tensor, Tensor]], options: TrainParameters, baseline: float
) -> tuple[Tensor, float, float]:
    """The gradient of a training step, the baseline after it, and the cross entropy that it reports."""
    objective = CrossEntropy(decoder, options)
    objective.state["baseline"].fill_(baseline)
    total, _ = step(objective, batches, options=options)
    gradient = torch.cat([parameter.grad.flatten() for parameter in trained(decoder)])
    return gradient, objective.state["baseline"].item(), total


def path_terms(
    decoder: Decoder, features: Tensor, caption: Tensor, path: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(word t | s) and log p(s_t), (n,) each, and the entropy of alpha summed over the words, from the slow
    decoder."""
    logits, alpha = slow_logits(decoder, features, caption, path)
    words = torch.stack([torch.log_softmax(row, 0)[word] for row, word in zip(logits, caption[1:])])
    return (
        words,
        torch.stack([row[s].log() for row, s in zip(alpha, path)]),
        -sum((row * row.log()).sum() for row in alpha),
    )


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Positions that one caption's words will look at, instead of drawing any."""
    path: list[int] = []
    monkeypatch.setattr(hard, "EXPECTED_SHARE", 0.0)
    monkeypatch.setattr(hard, "draw_positions", lambda weights: torch.full(weights.shape[:-1], path.pop(0)))
    yield path


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(
    ("reward", "entropy", "baseline"), [(1.0, 0.0, 0.0), (1.0, 0.0, -2.5), (1.0, 0.3, 1.7), (0.4, 0.1, -2.0)]
)
def test_expected_gradient_is_that_of_the_bound(
    looking: list[int], cell: str, reward: float, entropy: float, baseline: float
) -> None:
    """Every path weighted with its probability: no chance is left, and the baseline makes no difference.

    The bound is sum over s of p(s) log p(y | s); with lambda_r = 1 both of its terms have their full weight.
    """
    decoder, features = make_decoder(cell), make_features(1)
    options = TrainParameters(hard_reinforce=reward, hard_entropy=entropy)
    found, exact, total = 0.0, 0.0, 0.0
    for path in itertools.product(range(POSITIONS), repeat=3):
        words, choices, spread = path_terms(decoder, features[0], CAPTION, path)
        probability = choices.sum().exp()
        through_words = probability.detach() * (words.sum() + entropy * spread)
        exact = exact + gradient_of(through_words + reward * probability * words.sum().detach(), decoder)
        looking[:] = path
        gradient, _, _ = step_gradient(decoder, [(features, CAPTION.view(1, 1, -1))], options, baseline)
        found = found - probability.item() * gradient * 3  # the loss is a mean over three tokens
        total += probability.item()
    assert total == pytest.approx(1)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)
    if (reward, entropy) == (1.0, 0.0):  # and that is the bound itself, differentiated as it stands
        bound = sum(
            choices.sum().exp() * words.sum()
            for words, choices, _ in (
                path_terms(decoder, features[0], CAPTION, path)
                for path in itertools.product(range(POSITIONS), repeat=3)
            )
        )
        torch.testing.assert_close(found, gradient_of(bound, decoder), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("split", [(3,), (1, 2), (1, 1, 1)])
def test_one_draw_by_hand(split: tuple[int, ...]) -> None:
    """Ragged captions in one batch or in several of a step, some with the expected value: the terms caption by
    caption."""
    decoder, features, baseline = make_decoder("lstm"), make_features(3), -1.5
    options = TrainParameters(hard_reinforce=0.8, hard_entropy=0.05)
    batches = list(zip(features.split(split), RAGGED.split(split)))
    torch.manual_seed(1)
    drawn = []
    for part, tokens in batches:
        inputs, targets = inputs_and_targets(tokens)
        decoder(decoder.encode(part), inputs, unmasked(targets))
        drawn.append(decoder.attention.drawn_positions())
    positions = torch.cat(drawn)  # (3, 3, 5)
    torch.manual_seed(1)
    gradient, after, total = step_gradient(decoder, batches, options, baseline)

    loss, seen, cross_entropy = 0.0, [], 0.0
    for i, k in itertools.product(range(3), repeat=2):
        caption = RAGGED[i, k][RAGGED[i, k] != 0]
        if not len(caption):
            continue
        path = positions[i, k, : len(caption) - 1].tolist()
        words, choices, spread = path_terms(decoder, features[i], caption, path)
        loss = loss - words.sum() - 0.05 * spread
        cross_entropy -= words.sum().item()
        if path[0] >= 0:
            seen += words.tolist()
            for t, choice in enumerate(choices):
                loss = loss - 0.8 * sum(word - baseline for word in words[t:].tolist()) * choice
    tokens = 3 + 2 + 4 + 5 + 2 + 3
    assert 0 < len(seen) < tokens
    torch.testing.assert_close(gradient, gradient_of(loss / tokens, decoder), rtol=1e-9, atol=1e-11)
    assert total == pytest.approx(cross_entropy, rel=1e-12)
    assert after == pytest.approx(0.9 * baseline + 0.1 * sum(seen) / len(seen), rel=1e-12)


def test_the_baseline_begins_with_a_guess_and_stays_where_nothing_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make_decoder()
    assert CrossEntropy(decoder, TrainParameters()).state["baseline"].item() == pytest.approx(-math.log(VOCABULARY))
    monkeypatch.setattr(hard, "EXPECTED_SHARE", 1.0)
    gradient, baseline, _ = step_gradient(
        decoder, [(make_features(3), RAGGED)], TrainParameters(hard_entropy=0.0), -3.0
    )
    assert baseline == -3.0
    other, _, _ = step_gradient(
        decoder, [(make_features(3), RAGGED)], TrainParameters(hard_entropy=0.0, hard_reinforce=0.0), 7.0
    )
    assert torch.equal(gradient, other)  # nothing to reinforce, whatever the baseline


def test_a_weight_of_0_does_no_harm() -> None:
    """Scores so far apart that all weights but one are 0 in float32: finite gradients, and the entropy's is 0."""
    decoder, features = make_decoder().float(), make_features(3).float()
    decoder.attention.score.weight.data.mul_(1e4)
    assert (decoder(decoder.encode(features), inputs_and_targets(RAGGED)[0])[1] == 0).any()
    gradient, baseline, _ = step_gradient(decoder, [(features, RAGGED)], TrainParameters(), -2.0)
    assert gradient.isfinite().all() and math.isfinite(baseline) and gradient.abs().max() > 0


def test_bf16_has_nearly_the_same_gradient() -> None:
    decoder, features = make_decoder().float(), make_features(60).float()
    batch, found = [(features, RAGGED.repeat(20, 1, 1))], []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        found.append(step_gradient(decoder, batch, TrainParameters(precision=precision), -2.0)[0])
    assert 0 < (found[0] - found[1]).norm() < 0.1 * found[0].norm()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_self_critical_training_leaves_the_scores_as_they_are(optimizer: str) -> None:
    """It is of the likeliest position, as evaluation is, which has no gradient in the scores; all else learns. Weight
    decay passes over parameters without a gradient."""
    decoder, options = make_decoder(), TrainParameters(optimizer=optimizer, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    learner = build_optimizer(decoder, options)
    set_rates(learner, (0.01, 0.01))
    objective = SelfCritical(decoder, options, lambda captions, _: (captions == END).any(-1) * 1.0, 3)
    torch.manual_seed(0)
    for _ in range(3):
        step(objective, [(make_features(3), RAGGED)], learner)
    changed = {name for name, parameter in decoder.named_parameters() if not torch.equal(parameter, before[name])}
    scores = {f"attention.{name}" for name in ("score.weight", "key.weight", "query.weight", "query.bias")}
    assert set(before) - changed == scores | {"embedding.weight"}


@pytest.mark.parametrize("reward", [1.0, 0.0])
def test_it_learns_to_look_where_the_word_is(monkeypatch: pytest.MonkeyPatch, reward: float) -> None:
    """From drawn positions alone: one cell of an image shows the word, another one a wrong word without the mark."""
    monkeypatch.setattr(hard, "EXPECTED_SHARE", 0.0)
    torch.manual_seed(0)
    settings = DecoderConfig(
        "gru",
        "hard",
        VOCABULARY,
        4,
        6,
        6,
        feature_size=12,
        hidden_size=16,
        attention_size=8,
        position="none",
        dropout=0.0,
    )
    decoder, options = build_decoder(settings), TrainParameters(hard_reinforce=reward)
    optimizer, objective = torch.optim.Adam(trained(decoder), lr=0.01), CrossEntropy(decoder, options)

    def draw(images: int) -> tuple[Tensor, Tensor, Tensor]:
        features, index, word = (
            torch.randn(images, 6, 6) * 0.3,
            torch.randint(6, (images,)),
            torch.randint(4, VOCABULARY, (images,)),
        )
        rows = torch.arange(images)
        features[rows, index, word - 4] += 2
        features[rows, index, 5] += 2
        features[rows, (index + 1) % 6, torch.randint(0, 5, (images,))] += 2
        tokens = torch.stack([torch.full_like(word, START), word, torch.full_like(word, END)], 1)
        return features, tokens.unsqueeze(1), index

    for _ in range(250):
        features, tokens, _ = draw(64)
        step(objective, [(features, tokens)], optimizer)
    features, tokens, index = draw(500)
    decoder.eval()
    logits, attention = decoder(decoder.encode(features), tokens[..., :1])
    looked = (attention[:, 0, 0].argmax(-1) == index).float().mean()
    said = (logits.argmax(-1) == tokens[:, 0, 1]).float().mean()
    assert (looked > 0.9 and said > 0.9) if reward else looked < 0.6
