"""Decoders, search and training on a GPU do what they do on a CPU."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import pytest
import torch

from captioner.cuda_graphs import GraphedDecoder, graphed
from captioner.decoder import Decoder
from captioner.decoder.attention import ATTENTIONS
from captioner.search import beam_search
from tests.decoder.comparing import teacher_forced
from tests.decoder.examples import make_decoder, make_features, make_tokens
from tests.training.cuts import power_cut
from tests.training.runs import Runs, torchrun_environments
from tests.training.small import history, history_numbers, make_data, run, small_parameters, with_runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"), views=2)


def gradients(model: Decoder, features: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the cross entropy, with logits and attention weights."""
    outputs = teacher_forced(model, features, tokens)
    torch.nn.functional.cross_entropy(outputs.logits, outputs.targets).backward()
    found = {name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**found, "logits": outputs.logits.detach().cpu(), "attention": outputs.attention.detach().cpu()}


@pytest.mark.parametrize(
    ("decoder", "attention"), [*itertools.product(("gru", "lstm"), ATTENTIONS), ("transformer", "soft")]
)
def test_decoder_and_its_gradients(decoder: str, attention: str) -> None:
    features, tokens = make_features(4), make_tokens([[4, 1, -1], [7, -1, -1], [2, 2, 3], [1, 6, -1]])
    on_cpu = gradients(make_decoder(decoder, attention, layers=2, norm="batch"), features, tokens)
    on_gpu = gradients(make_decoder(decoder, attention, layers=2, norm="batch").cuda(), features.cuda(), tokens.cuda())
    assert on_cpu.keys() == on_gpu.keys() and len(on_cpu) > 10
    for name, expected in on_cpu.items():
        torch.testing.assert_close(
            on_gpu[name], expected, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("decoder", "attention"),
    [*itertools.product(("gru", "lstm"), ("soft", "hard", "multihead", "none")), ("transformer", "soft")],
)
def test_beam_search_with_and_without_graphs(decoder: str, attention: str) -> None:
    features, model = make_features(7), make_decoder(decoder, attention).eval()
    expected = beam_search(model, features, max_length=9, keep=5)
    on_gpu = make_decoder(decoder, attention).cuda().eval()
    with_graphs = graphed(on_gpu)
    assert isinstance(with_graphs, GraphedDecoder)
    for searched in (on_gpu, with_graphs, with_graphs):
        for one, other in zip(expected, beam_search(searched, features.cuda(), max_length=9, keep=5), strict=True):
            assert len(one) == 5 and [h.tokens for h in one] == [h.tokens for h in other]
            assert [h.log_probability for h in one] == pytest.approx([h.log_probability for h in other], rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"doubly_stochastic": 1.0, "label_smoothing": 0.1},
        {"ema": 0.9, "norm": "batch", "optimizer": "rmsprop"},
        {"decoder": "transformer", "layers": 2},
    ],
)
def test_training_learns_the_same(data: dict[str, Path], tmp_path: Path, options: dict) -> None:
    histories = []
    for device in ("cpu", "cuda"):
        parameters = with_runtime(
            small_parameters(**{"decoder": "lstm", "dropout": 0.0, "epochs": 4, **options}), device=device
        )
        histories.append(history_numbers(run(tmp_path / device, data, parameters)))
    for on_cpu, on_gpu in zip(*histories, strict=True):
        assert on_gpu == pytest.approx(
            on_cpu, rel=2e-3, abs=0.02
        )  # one or two of 175 tokens may be predicted otherwise
        assert on_gpu["val_cross_entropy"] == pytest.approx(on_cpu["val_cross_entropy"], rel=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"sampling": "linear", "sampling_rate": 0.5},
        {"scst_epochs": 1, "scst_bleu_weight": 0.5},
        {"select_by": "val_cider_d", "accumulate": 2},
        {"layers": 2, "tie_weights": True, "embedding_size": 6},
    ],
)
@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_every_way_of_training_runs(data: dict[str, Path], tmp_path: Path, attention: str, options: dict) -> None:
    if "scst_epochs" in options or "select_by" in options:
        pytest.importorskip("pycocoevalcap")
    run(tmp_path, data, with_runtime(small_parameters(attention=attention, epochs=2, **options), device="cuda"))
    entropies = [float(row["val_cross_entropy"]) for row in history(tmp_path)]
    assert len(entropies) == 2 + ("scst_epochs" in options) and entropies[1] < entropies[0] < 3


def test_features_from_anywhere_train_alike(data: dict[str, Path], tmp_path: Path) -> None:
    histories = [
        history_numbers(run(tmp_path / where, data, with_runtime(small_parameters(), device="cuda", features_on=where)))
        for where in ("gpu", "ram", "disk", "auto")
    ]
    for rows in histories[1:]:
        for first, other in zip(histories[0], rows, strict=True):
            assert other == pytest.approx(first, rel=1e-4)


def test_a_run_that_was_cut_off_goes_on(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = with_runtime(small_parameters(epochs=4), device="cuda", checkpoint_seconds=0)
    expected = history_numbers(run(tmp_path / "whole", data, parameters))
    monkeypatch.setattr(importlib.import_module("captioner.training.train"), "_STEPS_UNREAD", 1)
    with power_cut("000002-000000003"):
        run(tmp_path / "parts", data, parameters)
    for row, other in zip(expected, history_numbers(run(tmp_path / "parts", data, parameters)), strict=True):
        assert other == pytest.approx(row, rel=1e-3)


def test_two_processes_share_a_gpu(data: dict[str, Path], tmp_path: Path) -> None:
    parameters = with_runtime(small_parameters(dropout=0.0), device="cuda")
    one, runs = history_numbers(run(tmp_path / "one", data, parameters)), Runs()
    started = [
        runs.start(tmp_path / "two", data, parameters, environment, tmp_path / f"log{rank}")
        for rank, environment in enumerate(torchrun_environments(2))
    ]
    assert [runs.wait(process) for process in started] == [0, 0], (tmp_path / "log0").read_text()
    runs.close()
    for row, other in zip(one, history_numbers(tmp_path / "two"), strict=True):
        assert other == pytest.approx(row, rel=1e-3)
