"""Scheduled sampling: which words go in, what is learned from them, and when."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from captioner.training.batches import epoch_batches
from captioner.training.parallel import Whole
from captioner.training.scheduled_sampling import mix_inputs
from captioner.training.step import training_step
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.decoder import CaptionDecoder, DecoderConfig, build_decoder
from captioner.errors import CaptionerError
from captioner.parameters import TrainParameters
from captioner.training import phases
from captioner.training.inputs import load_inputs
from captioner.training.optimizers import build_optimizer, set_rates
from captioner.vocabulary.vocabulary import END, PAD, START, UNK
from tests.decoder.examples import make_decoder, make_features, make_tokens
from tests.decoder.slow import slow_logits
from tests.training.cuts import power_cut
from tests.training.small import history, result_bytes, run, small_parameters, with_runtime


class Table(nn.Module):
    """Says one word after each word, from a hand-written table; its state is nothing."""

    def __init__(self, following: dict[int, int], words: int) -> None:
        super().__init__()
        self.following, self.rows = torch.tensor([following.get(word, END) for word in range(words)]), 0

    def encode(self, features: Tensor) -> None:
        assert not self.training

    def start(self, memory: None, hypotheses: int) -> None:
        return None

    def advance(self, words: Tensor, state: None, memory: None, live: Tensor) -> tuple[Tensor, None, None]:
        return words.flatten()[live], None, None

    def vocabulary(self, last: Tensor) -> Tensor:
        self.rows += len(last)
        return F.one_hot(self.following[last], len(self.following)).double().log()


def saying(following: dict[int, int], words: int = 30) -> Any:
    return Table(following, words).train()


def test_everything_is_replaced_by_what_the_decoder_says() -> None:
    tokens = torch.tensor([[[START, 4, 5, 6, END], [START, 7, END, PAD, PAD]], [[START, 4, 4, END, PAD], [PAD] * 5]])
    decoder = saying(dict.fromkeys(range(30), 9))
    mixed = mix_inputs(decoder, torch.zeros(2, 1, 1), tokens, 1.0)
    # START stays, and so does what does not go in: the END of a caption and what follows it
    assert mixed.tolist() == [[[START, 9, 9, 9], [START, 9, END, PAD]], [[START, 9, 9, END], [PAD] * 4]]
    assert decoder.training and decoder.rows == 6
    assert tokens[0, 0].tolist() == [START, 4, 5, 6, END]  # as given


def test_words_follow_the_words_that_went_in() -> None:
    """A word that was drawn is what the next draw is after; <end> too."""
    tokens = torch.tensor([[[START, 4, 5, 6, 7, 8, END]]])
    mixed = mix_inputs(saying({START: 10, 10: 11, 11: END, END: 12, 12: 13}), torch.zeros(1, 1, 1), tokens, 1.0)
    assert mixed.tolist() == [[[START, 10, 11, END, 12, 13]]]


def test_words_that_evaluation_never_says_are_not_drawn() -> None:
    decoder = make_decoder()
    nn.init.zeros_(decoder.vocabulary.weight)
    decoder.vocabulary.bias.data.fill_(-5)
    decoder.vocabulary.bias.data[[PAD, START, UNK]] = 50.0
    decoder.vocabulary.bias.data[END] = 30.0
    tokens = make_tokens([[3]])
    assert mix_inputs(decoder, make_features(1), tokens, 1.0).tolist() == [[[START, END, END, END]]]


def test_as_many_are_drawn_as_the_share_says_each_for_itself() -> None:
    """A decoder whose words no caption has, each of which says the last one: 40,000 coins of 0.3 in each place."""
    following = {word: 10 + (3 * word + 1) % 10 for word in range(20)}
    decoder, captions = saying(following), 40_000
    tokens = torch.tensor([START, 4, 5, 6, END]).expand(1, captions, 5)
    torch.manual_seed(0)
    mixed = mix_inputs(decoder, torch.zeros(1, 1, 1), tokens, 0.3)[0]
    drawn = mixed >= 10
    assert not drawn[:, 0].any() and decoder.rows == int(drawn.sum())  # no logits but where there is a coin
    assert torch.equal(mixed[~drawn], tokens[0, :, :-1][~drawn])
    before = mixed[:, :-1][drawn[:, 1:]]
    assert mixed[:, 1:][drawn[:, 1:]].tolist() == [following[word] for word in before.tolist()]
    for places in ([1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]):
        likely = 0.3 ** len(places)
        count = int(drawn[:, places].all(1).sum())
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
    mixed = mix_inputs(decoder, features, torch.tensor([START, *true, END]).expand(1, count, 5), share)
    assert decoder.training
    found = Counter(map(tuple, mixed[0, :, 1:].tolist()))
    deviations = []
    with torch.no_grad():
        for words in itertools.product(possible, repeat=3):
            logits, _ = slow_logits(decoder, features[0], torch.tensor([START, *words]))
            own = logits[:, possible].softmax(1)
            likely = 1.0
            for place, word in enumerate(words):
                likely *= share * own[place, possible.index(word)].item() + (1 - share) * (word == true[place])
            deviations.append((found.pop(words, 0) - count * likely) / (count * likely * (1 - likely)) ** 0.5)
    assert not found
    assert (
        max(map(abs, deviations)) < 4 and sum(value**2 for value in deviations) < 54
    )  # chi-square, 26 degrees of freedom: once in 1,000


def one_step(decoder: CaptionDecoder, features: Tensor, tokens: Tensor, sampled: float) -> tuple[float, list[Tensor]]:
    """Summed cross entropy and gradients of the mean one."""
    options = TrainParameters(optimizer="sgd", clip=0.0)
    optimizer = build_optimizer(decoder, options)
    set_rates(optimizer, (0.0, 0.0))
    whole = Whole.of([tokens])
    whole = Whole(whole.tokens, whole.captions, whole.images, whole.group, sampled)
    total, count = training_step(decoder, optimizer, [(features, tokens)], options, whole)
    assert count == int((tokens > START).sum())
    return total.item(), [parameter.grad for parameter in decoder.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(("cell", "shape"), [("gru", {}), ("lstm", {}), ("lstm", {"layers": 2, "tie_weights": True})])
def test_what_is_learned_is_the_caption_after_the_words_that_went_in(cell: str, shape: dict[str, Any]) -> None:
    """Loss and gradients of a step, against the equations for each caption with the mixed words in its place."""
    decoder, features, tokens = (
        make_decoder(cell, **shape).train(),
        make_features(3),
        make_tokens([[4, 1], [7, -1], [2, 5]]),
    )
    torch.manual_seed(5)
    mixed = mix_inputs(decoder, features, tokens, 0.6)
    assert 3 <= int((mixed != tokens[..., :-1]).sum()) < 16
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
    for name in ("models/model.safetensors", "results/history.csv", "results/metrics.json"):
        assert ours[name] == usual[name]


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


def watch(monkeypatch: pytest.MonkeyPatch, name: str) -> list[float]:
    """Shares of the steps of a kind from here on."""
    seen, original = [], getattr(phases, name)

    def step(*arguments: Any) -> Any:
        seen.append(arguments[-1].sampled)
        return original(*arguments)

    monkeypatch.setattr(phases, name, step)
    return seen


def test_shares_of_the_steps_of_a_run(
    data: dict[str, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 in the first epoch, to 0.5 in the next two, step by step; nothing in self-critical training."""
    seen, critical = watch(monkeypatch, "training_step"), watch(monkeypatch, "self_critical_step")
    run(tmp_path, data, small_parameters(**OPTIONS, scst_epochs=1))
    table = load_inputs(
        small_parameters(), *(data[name] for name in ("features", "captions", "vocab", "embeddings"))
    ).train
    steps = [len(epoch_batches(table, 16, 0, 2, seed=1, epoch=epoch)) for epoch in range(1, 5)]
    rising = [(epoch + step / steps[1 + epoch]) / 2 * 0.5 for epoch in range(2) for step in range(steps[1 + epoch])]
    assert seen == pytest.approx([0.0] * steps[0] + rising + [0.5] * steps[3]) and min(steps) > 3
    assert critical and set(critical) == {0.0}
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
