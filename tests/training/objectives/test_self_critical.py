"""Sampling and the policy gradient, against the enumeration of every caption that a tiny decoder can say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.parameters import TrainParameters
from captioner.search import beam_search
from captioner.training.objectives import SelfCritical, self_critical
from captioner.training.objectives.sampling import sample_captions
from captioner.vocabulary.vocabulary import END, PAD, START, UNK
from tests.training.objectives.steps import step

VOCABULARY, CHANNELS, POSITIONS, LONGEST = 6, 5, 4, 3
WORDS = (4, 5)
# every caption: up to two words and END, or three words without it
CAPTIONS = [(*words, END) for n in range(LONGEST) for words in itertools.product(WORDS, repeat=n)] + list(
    itertools.product(WORDS, repeat=LONGEST)
)


def make_decoder(cell: str = "lstm", seed: int = 0, dropout: float = 0.0, vocabulary: int = VOCABULARY) -> Decoder:
    torch.manual_seed(seed)
    settings = DecoderConfig(
        cell,
        "soft",
        vocabulary,
        3,
        CHANNELS,
        POSITIONS,
        feature_size=4,
        hidden_size=5,
        attention_size=3,
        heads=1,
        dropout=dropout,
    )
    decoder = build_decoder(settings).double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return decoder.eval()


def make_features(images: int, seed: int = 1) -> Tensor:
    return torch.randn(images, POSITIONS, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def row(caption: tuple[int, ...]) -> list[int]:
    return [START, *caption, *[PAD] * (LONGEST - len(caption))]


def caption_of(tokens: list[int]) -> tuple[int, ...]:
    return tuple(token for token in tokens[1:] if token != PAD)


def log_probability(decoder: Decoder, features: Tensor, caption: tuple[int, ...]) -> Tensor:
    """Of one caption of one image, a word at a time, with gradient; only END and the words share the probability.

    Of an image that stands in ``features`` more than once the mean, over what dropout left each time.
    """
    memory = decoder.encode(features)
    state, total, last = decoder.initial_state(memory, 1), features.new_zeros(()), START
    for word in caption:
        logits, state, _ = decoder.step(torch.full((len(features), 1), last), state, memory)
        possible = [END, *WORDS]
        total = total + torch.log_softmax(logits[:, 0, possible], 1)[:, possible.index(word)].mean()
        last = word
    return total


def worth(captions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """A reward that has nothing to do with language; the image's number (its only reference) counts too."""
    number = references[:, 0, 0][:, None]
    return np.cos((captions * np.array([0, 1.3, 2.9, 0.7])[: captions.shape[2]]).sum(-1) + number) * 2 + 1


def rewards_of(captions: list[tuple[int, ...]], number: int) -> list[float]:
    return worth(np.array([[row(one) for one in captions]]), np.array([[[number]]]))[0].tolist()


def trained(decoder: Decoder) -> list[Tensor]:
    return [parameter for parameter in decoder.parameters() if parameter.requires_grad]


def flat(gradients) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def exact_gradient(decoder: Decoder, features: Tensor) -> Tensor:
    """Of the expected reward, mean over the images, by enumeration."""
    expected = sum(
        log_probability(decoder, features[i : i + 1], caption).exp() * reward
        for i in range(len(features))
        for caption, reward in zip(CAPTIONS, rewards_of(CAPTIONS, i))
    ) / len(features)
    return flat(torch.autograd.grad(expected, trained(decoder)))


def greedy_caption(decoder: Decoder, features: Tensor) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while len(tokens) < LONGEST and END not in tokens:
        tokens += (max((END, *WORDS), key=lambda word: log_probability(decoder, features, (*tokens, word)).item()),)
    return tokens


@pytest.mark.parametrize("cell", ["gru", "lstm", "transformer"])
def test_captions_are_drawn_as_often_as_they_are_likely(cell: str) -> None:
    decoder, features, samples = make_decoder(cell), make_features(2), 20_000
    torch.manual_seed(3)
    tokens = sample_captions(decoder, features, samples, LONGEST)
    assert tokens.shape == (2, samples, LONGEST + 1) and tokens.dtype == torch.int64
    for i in range(2):
        counts = dict.fromkeys(CAPTIONS, 0)
        for tokens_of in tokens[i].tolist():
            counts[caption_of(tokens_of)] += 1  # a KeyError: no caption
            assert tokens_of == row(caption_of(tokens_of))
        likely = (
            torch.stack([log_probability(decoder, features[i : i + 1], caption) for caption in CAPTIONS]).exp().detach()
        )
        assert likely.sum().item() == pytest.approx(1)
        deviation = (torch.tensor([counts[caption] for caption in CAPTIONS]) - samples * likely) / (
            samples * likely * (1 - likely)
        ).sqrt()
        assert (
            deviation.abs().max() < 4 and (deviation**2).sum() < 36
        )  # chi-square with 14 degrees of freedom passes 36 once in 1,000


@pytest.mark.parametrize(("cell", "baseline"), [("lstm", "mean"), ("lstm", "greedy"), ("transformer", "mean")])
def test_expected_gradient_is_that_of_the_expected_reward(
    monkeypatch: pytest.MonkeyPatch, cell: str, baseline: str
) -> None:
    """Every pair of captions that could be drawn, weighted with its probability: no chance is left in it."""
    decoder, features = make_decoder(cell), make_features(1)
    options = TrainParameters(scst_samples=2, scst_baseline=baseline)
    greedy, likely = (
        greedy_caption(decoder, features),
        [log_probability(decoder, features, one).exp().item() for one in CAPTIONS],
    )
    objective, total = SelfCritical(decoder, options, worth, LONGEST), torch.zeros(())
    for (one, p), (two, q) in itertools.product(zip(CAPTIONS, likely), repeat=2):
        drawn = [row(one), row(two), *([row(greedy)] if baseline == "greedy" else [])]
        monkeypatch.setattr(self_critical, "sample_captions", lambda *_, **__: torch.tensor([drawn]))
        found, count = step(objective, [(features, torch.zeros(1, 1, 1, dtype=torch.int64))])
        assert found == pytest.approx(sum(rewards_of([one, two], 0))) and count == 2
        total = total - p * q * flat(parameter.grad for parameter in trained(decoder))
    torch.testing.assert_close(total, exact_gradient(decoder, features), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_average_gradient_of_real_steps(baseline: str) -> None:
    """The whole step with its own samples in two batches and plain gradient descent, dropout set: each entry within 4.5
    of its standard errors."""
    decoder, features = make_decoder(dropout=0.5).train(), make_features(2)
    exact = exact_gradient(decoder.eval(), features)
    decoder.train()
    assert_average_gradient(decoder, features, exact, TrainParameters(scst_samples=3, scst_baseline=baseline))


def test_average_gradient_with_dropout() -> None:
    """The mean over dropout of each caption's gradient, times how likely the whole decoder says it and how much better
    than expected it is."""
    decoder, features = make_decoder(dropout=0.5), make_features(2)
    exact = torch.zeros(())
    for i in range(2):
        likely = [log_probability(decoder, features[i : i + 1], caption).exp().item() for caption in CAPTIONS]
        rewards = rewards_of(CAPTIONS, i)
        expected = sum(p * reward for p, reward in zip(likely, rewards))
        for caption, p, reward in zip(CAPTIONS, likely, rewards):
            decoder.dropout.train()
            mean = log_probability(decoder, features[i : i + 1].repeat(20_000, 1, 1), caption)
            decoder.dropout.eval()
            exact = exact + p * (reward - expected) * flat(torch.autograd.grad(mean, trained(decoder))) / 2
    without = exact_gradient(decoder, features)
    assert (exact - without).norm() > 0.2 * without.norm()  # it would show
    assert_average_gradient(decoder, features, exact, TrainParameters(scst_samples=3, scst_dropout=True))


def assert_average_gradient(decoder: Decoder, features: Tensor, exact: Tensor, options: TrainParameters) -> None:
    many, numbers = features.repeat(40, 1, 1), torch.tensor([0, 1]).repeat(40).view(-1, 1, 1)
    start = [parameter.detach().clone() for parameter in trained(decoder)]
    optimizer, objective = torch.optim.SGD(trained(decoder), lr=1.0), SelfCritical(decoder, options, worth, LONGEST)
    torch.manual_seed(0)
    found = []
    for _ in range(200):
        step(objective, [(many[:50], numbers[:50]), (many[50:], numbers[50:])], optimizer)
        found.append(flat(now.detach() - before for now, before in zip(trained(decoder), start)))
        for now, before in zip(trained(decoder), start):
            now.data.copy_(before)
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert error.norm() < 0.1 * exact.norm()  # it would show
    assert ((found.mean(0) - exact).abs() < 4.5 * error + 1e-12).all()


def test_greedy_is_the_last_caption_and_that_of_the_search() -> None:
    decoder, features = make_decoder(seed=6, vocabulary=40), make_features(9)
    decoder.vocabulary.bias.data[END] = 3.0
    tokens = sample_captions(decoder, features, 2, 12, greedy=True)
    assert tokens.shape[:2] == (9, 3) and (tokens[:, :, 0] == START).all()
    found = [[token for token in caption if token not in (START, PAD)] for caption in tokens[:, 2].tolist()]
    expected = [[*best.tokens, END][:12] for [best] in beam_search(decoder, features, 1, max_length=12)]
    assert found == expected
    assert len({len(caption) for caption in found}) > 1


def test_what_is_never_drawn_and_where_captions_end() -> None:
    decoder, features = make_decoder(), make_features(3)
    decoder.vocabulary.bias.data[[PAD, START, UNK]] = 50.0
    tokens = sample_captions(decoder, features, 50, 2, greedy=True)
    assert set(tokens[:, :, 1:].flatten().tolist()) <= {PAD, END, *WORDS} and not (tokens[:, :, 1] == PAD).any()
    decoder.vocabulary.bias.data[END] = 200.0
    assert sample_captions(decoder, features, 2, 30, greedy=True).tolist() == [[[START, END]] * 3] * 3
    decoder.vocabulary.bias.data[END] = -200.0
    tokens = sample_captions(decoder, features, 2, 7)
    assert tokens.shape == (3, 2, 8) and not ((tokens == END) | (tokens == PAD)).any()


@pytest.mark.parametrize(("number", "word"), [(0.0, END), (1.0, VOCABULARY - 1)])
def test_no_random_number_draws_a_word_of_probability_0(
    monkeypatch: pytest.MonkeyPatch, number: float, word: int
) -> None:
    monkeypatch.setattr(torch, "rand", lambda size, **options: torch.full(size, number, **options))
    assert (sample_captions(make_decoder(), make_features(2), 3, 1)[:, :, 1] == word).all()


def test_sampling_ends_with_the_last_caption_and_the_generator_decides() -> None:
    decoder, features = make_decoder(), make_features(4)
    decoder.vocabulary.bias.data[END] = 1.0
    calls, usual = [], decoder.step
    decoder.step = lambda *arguments: calls.append(1) or usual(*arguments)
    torch.manual_seed(7)
    tokens = sample_captions(decoder, features, 6, 30)
    ended = (tokens == END).cumsum(2) > 0
    assert (ended.sum(2) > 0).all() and ((tokens == PAD) == (ended & (tokens != END))).all()
    assert len(calls) == tokens.shape[2] - 1 < 30 and len(set(ended.sum(2).flatten().tolist())) > 1
    assert not torch.equal(sample_captions(decoder, features, 6, 30), tokens)
    torch.manual_seed(7)
    assert torch.equal(sample_captions(decoder, features, 6, 30), tokens)


def test_a_step_reports_the_rewards_of_its_samples() -> None:
    decoder, features = make_decoder(), make_features(2)
    numbers = torch.tensor([0, 1]).view(-1, 1, 1)
    torch.manual_seed(1)
    drawn = sample_captions(decoder, features, 4, LONGEST)
    torch.manual_seed(1)
    total, count = step(SelfCritical(decoder, TrainParameters(scst_samples=4), worth, LONGEST), [(features, numbers)])
    assert count == 8 and total == pytest.approx(worth(drawn.numpy(), numbers.numpy()).sum())


def test_training_earns_a_higher_reward() -> None:
    decoder, features = make_decoder(), make_features(2)
    numbers = torch.tensor([0, 1]).view(-1, 1, 1)
    optimizer = torch.optim.Adam(trained(decoder), lr=0.02)
    objective = SelfCritical(decoder, TrainParameters(scst_samples=8), worth, LONGEST)
    torch.manual_seed(0)
    means = [step(objective, [(features, numbers)], optimizer)[0] / 16 for _ in range(150)]
    best = sum(max(rewards_of(CAPTIONS, i)) for i in range(2)) / 2
    assert sum(means[:5]) / 5 < 0.6 * best and sum(means[-5:]) / 5 > 0.9 * best


def test_a_loss_that_is_not_finite_is_seen_in_the_rewards() -> None:
    decoder, features = make_decoder(), make_features(2)
    decoder.word.weight.data[0, 0] = float("nan")
    numbers = torch.tensor([0, 1]).view(-1, 1, 1)
    total, _ = step(SelfCritical(decoder, TrainParameters(), worth, LONGEST), [(features, numbers)])
    assert math.isnan(total)


def test_bf16_has_nearly_the_same_gradient() -> None:
    torch.manual_seed(0)
    decoder, features = make_decoder().float(), make_features(40).float()
    numbers = torch.arange(40).view(-1, 1, 1) % 2
    found = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        options = TrainParameters(precision=precision, scst_samples=50)
        step(SelfCritical(decoder, options, worth, LONGEST), [(features, numbers)], options=options)
        found.append([parameter.grad for parameter in trained(decoder)])
    for one, two in zip(*found):
        assert (one - two).norm() <= 0.1 * one.norm()
    assert not all(torch.equal(one, two) for one, two in zip(*found))
