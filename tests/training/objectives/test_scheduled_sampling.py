"""Scheduled sampling: which words go in, what is learned from them, and when."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.batches import inputs_and_targets
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.errors import CaptionerError
from captioner.parameters import TrainParameters
from captioner.training.data import epoch_batches
from captioner.training.inputs import load_inputs
from captioner.training.objectives import CrossEntropy, SelfCritical, cross_entropy
from captioner.training.objectives.scheduled_sampling import mix_inputs
from captioner.vocabulary.vocabulary import END, PAD, START, UNK
from tests.decoder.examples import make_decoder, make_features, make_tokens
from tests.decoder.slow import slow_logits
from tests.training.cuts import power_cut
from tests.training.objectives.steps import step
from tests.training.small import history, result_bytes, run, small_parameters, with_runtime


class Table(nn.Module):
    """Says one word after each word, from a hand-written table; its state is nothing."""

    def __init__(self, following: dict[int, int], words: int) -> None:
        super().__init__()
        self.following, self.steps = torch.tensor([following.get(word, END) for word in range(words)]), 0

    def encode(self, features: Tensor) -> None:
        assert not self.training

    def initial_state(self, memory: None, beams: int) -> None:
        return None

    def step(self, tokens: Tensor, state: None, memory: None) -> tuple[Tensor, None, None]:
        self.steps += 1
        return F.one_hot(self.following[tokens], len(self.following)).double().log(), None, None


def saying(following: dict[int, int], words: int = 30) -> Any:
    return Table(following, words).train()


def test_everything_is_replaced_by_what_the_decoder_says() -> None:
    tokens = torch.tensor([[[START, 4, 5, 6, END], [START, 7, END, PAD, PAD]], [[START, 4, 4, END, PAD], [PAD] * 5]])
    decoder, (inputs, _) = saying(dict.fromkeys(range(30), 9)), inputs_and_targets(tokens)
    mixed = mix_inputs(decoder, torch.zeros(2, 1, 1), inputs, 1.0)
    # START and padding stay
    assert mixed.tolist() == [[[START, 9, 9, 9], [START, 9, PAD, PAD]], [[START, 9, 9, PAD], [PAD] * 4]]
    assert decoder.training and decoder.steps == 3
    assert inputs[0, 0].tolist() == [START, 4, 5, 6]  # as given


def test_no_step_after_the_last_word_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, coins = torch.tensor([[[START, 4, 5, 6, 7]]]), torch.tensor([[[0.0, 0.9, 0.0, 0.9, 0.9]]])
    monkeypatch.setattr(
        torch, "rand", lambda *size, **options: coins if size == (inputs.shape,) else torch.zeros(*size)
    )
    decoder = saying(dict.fromkeys(range(30), 9))
    assert mix_inputs(decoder, torch.zeros(1, 1, 1), inputs, 0.5).tolist() == [[[START, 4, 9, 6, 7]]]
    assert decoder.steps == 2


def test_words_follow_the_words_that_went_in() -> None:
    """A word that was drawn is what the next draw is after; <end> too."""
    inputs = torch.tensor([[[START, 4, 5, 6, 7, 8]]])
    mixed = mix_inputs(saying({START: 10, 10: 11, 11: END, END: 12, 12: 13}), torch.zeros(1, 1, 1), inputs, 1.0)
    assert mixed.tolist() == [[[START, 10, 11, END, 12, 13]]]


def test_words_that_evaluation_never_says_are_not_drawn() -> None:
    decoder = make_decoder()
    nn.init.zeros_(decoder.vocabulary.weight)
    decoder.vocabulary.bias.data.fill_(-5)
    decoder.vocabulary.bias.data[[PAD, START, UNK]] = 50.0
    decoder.vocabulary.bias.data[END] = 30.0
    inputs, _ = inputs_and_targets(make_tokens([[3]]))
    assert mix_inputs(decoder, make_features(1), inputs, 1.0).tolist() == [[[START, END, END, END]]]


def test_as_many_are_drawn_as_the_share_says_each_for_itself() -> None:
    """A decoder whose words no caption has, each of which says the last one: 40,000 coins of 0.3 in each place."""
    following = {word: 10 + (3 * word + 1) % 10 for word in range(20)}
    decoder, captions = saying(following), 40_000
    inputs = torch.tensor([START, 4, 5, 6]).expand(1, captions, 4)
    torch.manual_seed(0)
    mixed = mix_inputs(decoder, torch.zeros(1, 1, 1), inputs, 0.3)[0]
    drawn = mixed >= 10
    assert not drawn[:, 0].any()
    assert torch.equal(mixed[~drawn], inputs[0][~drawn])
    before = mixed[:, :-1][drawn[:, 1:]]
    assert mixed[:, 1:][drawn[:, 1:]].tolist() == [following[word] for word in before.tolist()]
    for positions in ([1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]):
        likely = 0.3 ** len(positions)
        count = int(drawn[:, positions].all(1).sum())
        assert abs(count - captions * likely) < 3 * (captions * likely * (1 - likely)) ** 0.5


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_words_are_drawn_as_often_as_they_are_likely(cell: str) -> None:
    """Against the equations: every caption that can come out, of two words and <end>, and how often it must."""
    torch.manual_seed(1)
    settings = DecoderConfig(cell, "soft", 6, 3, 5, 4, feature_size=4, hidden_size=5, attention_size=3, dropout=0.5)
    decoder = build_decoder(settings).double().train()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.7)
    features = torch.randn(1, 4, 5, dtype=torch.float64)
    true, possible, share, count = (5, 4, 5), (END, 4, 5), 0.6, 30_000
    torch.manual_seed(2)
    mixed = mix_inputs(decoder, features, torch.tensor([START, *true]).expand(1, count, 4), share)
    assert decoder.training
    found = Counter(map(tuple, mixed[0, :, 1:].tolist()))
    deviations = []
    with torch.no_grad():
        for words in itertools.product(possible, repeat=3):
            logits, _ = slow_logits(decoder, features[0], torch.tensor([START, *words]))
            own = logits[:, possible].softmax(1)
            likely = 1.0
            for position, word in enumerate(words):
                likely *= share * own[position, possible.index(word)].item() + (1 - share) * (word == true[position])
            deviations.append((found.pop(words, 0) - count * likely) / (count * likely * (1 - likely)) ** 0.5)
    assert not found
    assert (
        max(map(abs, deviations)) < 4 and sum(value**2 for value in deviations) < 54
    )  # chi-square, 26 degrees of freedom: once in 1,000


def one_step(decoder: Decoder, features: Tensor, tokens: Tensor, share: float) -> tuple[float, list[Tensor]]:
    """Summed cross entropy and gradients of the mean one, where ``share`` of the words are drawn."""
    options = TrainParameters(sampling="linear", sampling_start=1, sampling_epochs=1, sampling_rate=0.6)
    objective = CrossEntropy(decoder, options)
    total, count = step(objective, [(features, tokens)], epochs=share / 0.6)
    assert count == int((tokens > START).sum())
    return total, [parameter.grad for parameter in decoder.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(("cell", "shape"), [("gru", {}), ("lstm", {}), ("lstm", {"layers": 2, "tie_weights": True})])
def test_what_is_learned_is_the_caption_after_the_words_that_went_in(cell: str, shape: dict[str, Any]) -> None:
    """Loss and gradients of a step, against the equations for each caption with the mixed words in its place."""
    decoder, features, tokens = (
        make_decoder(cell, **shape).train(),
        make_features(3),
        make_tokens([[4, 1], [7, -1], [2, 5]]),
    )
    torch.manual_seed(5)
    inputs, _ = inputs_and_targets(tokens)
    mixed = mix_inputs(decoder, features, inputs, 0.6)
    assert 3 <= int((mixed != inputs).sum()) < 16
    torch.manual_seed(5)
    total, gradients = one_step(decoder, features, tokens, 0.6)
    entropy = 0.0
    for i, k in itertools.product(range(3), range(2)):
        caption = tokens[i, k][tokens[i, k] != PAD]
        if len(caption):
            entering = torch.cat([mixed[i, k, : len(caption) - 1], caption[-1:]])
            entropy = entropy + F.cross_entropy(
                slow_logits(decoder, features[i], entering)[0], caption[1:], reduction="sum"
            )
    assert total == pytest.approx(entropy.item(), rel=1e-12)
    expected = torch.autograd.grad(
        entropy / int((tokens > START).sum()),
        [parameter for parameter in decoder.parameters() if parameter.requires_grad],
    )
    for one, two in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    assert one_step(decoder, features, tokens, 0.0)[0] != pytest.approx(total, rel=1e-3)


def test_nothing_is_drawn_where_the_share_is_0() -> None:
    decoder, features, tokens = make_decoder().train(), make_features(1), make_tokens([[4, 1]])
    before = torch.get_rng_state()
    one_step(decoder, features, tokens, 0.0)
    assert torch.equal(torch.get_rng_state(), before)


OPTIONS: dict[str, Any] = {
    "epochs": 4,
    "sampling": "linear",
    "sampling_start": 2,
    "sampling_epochs": 2,
    "sampling_rate": 0.5,
}


@pytest.fixture(scope="module")
def whole(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole"), data, small_parameters(**OPTIONS))


def test_a_final_share_of_0_is_teacher_forcing(data: dict[str, Path], tmp_path: Path) -> None:
    ours = result_bytes(run(tmp_path / "0", data, small_parameters(**{**OPTIONS, "sampling_rate": 0.0})))
    usual = result_bytes(run(tmp_path / "none", data, small_parameters(epochs=4)))
    assert ours.keys() == usual.keys() and {name for name in ours if ours[name] != usual[name]} == {
        "models/config.json"
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": "exponential"},
        {"sampling": "inverse_sigmoid"},
        {"sampling_epochs": 3},
        {"sampling_rate": 0.9},
        {"sampling_start": 3},
    ],
)
def test_every_parameter_changes_the_result(
    data: dict[str, Path], whole: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    rows, usual = history(run(tmp_path, data, small_parameters(**{**OPTIONS, **changes}))), history(whole)
    assert rows[0] == usual[0] and rows[1]["val_cross_entropy"] != usual[1]["val_cross_entropy"]


def test_shares_of_the_steps_of_a_run(
    data: dict[str, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 in the first epoch, to 0.5 in the next two, step by step; nothing in self-critical training."""
    shares: list[float] = []  # of the steps
    mixed: list[float] = []  # of calls of mix_inputs
    critical: list[int] = []  # calls of mix_inputs before each step of self-critical training
    usual_share, usual_mix, usual_prepare = cross_entropy.sampled_share, mix_inputs, SelfCritical.prepare
    monkeypatch.setattr(
        cross_entropy, "sampled_share", lambda *arguments: shares.append(usual_share(*arguments)) or shares[-1]
    )
    monkeypatch.setattr(
        cross_entropy, "mix_inputs", lambda *arguments: mixed.append(arguments[-1]) or usual_mix(*arguments)
    )
    monkeypatch.setattr(
        SelfCritical, "prepare", lambda *arguments: critical.append(len(mixed)) or usual_prepare(*arguments)
    )
    run(tmp_path, data, small_parameters(**OPTIONS, scst_epochs=1))
    table = load_inputs(
        small_parameters(), *(data[name] for name in ("features", "captions", "vocab", "embeddings"))
    ).train
    steps = [len(epoch_batches(table, 16, 0, 2, seed=1, epoch=epoch)) for epoch in range(1, 5)]
    rising = [(epoch + step / steps[1 + epoch]) / 2 * 0.5 for epoch in range(2) for step in range(steps[1 + epoch])]
    assert shares == pytest.approx([0.0] * steps[0] + rising + [0.5] * steps[3]) and min(steps) > 3
    assert mixed == [share for share in shares if share]
    assert critical and set(critical) == {len(mixed)}
    for ours, usual in zip(history(tmp_path), history(whole)):
        assert {name: ours[name] for name in usual} == usual


@pytest.mark.parametrize("newest", ["000002-000000003", "000003-000000000"])
def test_resumes_exactly(data: dict[str, Path], tmp_path: Path, newest: str) -> None:
    """Cut in the middle of the rise and between its epochs; several batches a step."""

    parameters = small_parameters(**OPTIONS, accumulate=2)
    usual = result_bytes(run(tmp_path / "whole", data, parameters))
    with power_cut(newest):
        run(tmp_path / "cut", data, with_runtime(parameters, checkpoint_seconds=0))
    assert result_bytes(run(tmp_path / "cut", data, parameters)) == usual


def test_a_start_after_the_last_epoch_is_refused(data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        CaptionerError, match=r"train.sampling_start=5: there are only train.epochs=4 epochs; .* train.sampling=none"
    ):
        run(tmp_path, data, small_parameters(**{**OPTIONS, "sampling_start": 5}))
    run(tmp_path, data, small_parameters(epochs=1, sampling_start=5))  # where nothing is sampled it says nothing
