"""The benchmark of training at COCO's size, in a small version on the CPU."""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.coco import LENGTHS, Sizes, make_features, make_table
from benchmarks.loops import FitLoop, TimedLoader
from benchmarks.train import main
from captioner.features.readers import GpuReader
from captioner.training.train import fit
from captioner.vocabulary.vocabulary import END, PAD, START

TRAIN = sys.modules[fit.__module__]  # the package has a function of that name
TINY = Sizes(images=30, captions=150, positions=4, channels=8, vocabulary=50, hidden=8)


def loop(batch_size: int = 10) -> FitLoop:
    cpu = torch.device("cpu")
    loader = TimedLoader(make_table(TINY), np.arange(TINY.images), GpuReader(make_features(TINY, cpu)), cpu)
    return FitLoop(TINY, loader, cpu, batch_size, "fp32")


def test_captions_are_spread_evenly_and_as_long_as_cocos() -> None:
    sizes = Sizes(images=4000, captions=20_010)
    table = make_table(sizes)
    assert np.bincount(table.image, minlength=4000).tolist() == [6] * 10 + [5] * 3990
    assert (table.tokens[:, 0][:-1] == START).all() and (table.tokens[-1] == PAD).all()
    lengths = (table.tokens[:-1] >= 4).sum(1)
    assert ((table.tokens == END).sum(1)[:-1] == 1).all() and (table.targets[:-1] == lengths + 1).all()
    mean = sum(min(length, 30) * count for length, count in LENGTHS.items()) / 600
    assert sum(LENGTHS.values()) == 600 and lengths.mean() == pytest.approx(
        mean, abs=0.06
    )  # four standard errors of 2.1 / sqrt(20,010)
    assert lengths.min() == 7 and lengths.max() == 30


def test_steps_are_the_training_loops_and_end_when_asked() -> None:
    ours = loop()
    before = {name: tensor.clone() for name, tensor in ours.decoder.named_parameters()}
    assert ours.steps_in_epoch == 15  # 150 captions, 10 in a batch
    with ours:
        ours.run(2, 3)
        assert len(ours.loader.waits) == 5 and ours.loader.captions == 30 and ours.loader.seconds > 0
        trained = [name for name, tensor in ours.decoder.named_parameters() if not torch.equal(tensor, before[name])]
        assert len(trained) == len(before) - 1  # all but the frozen word vectors
        now = {name: tensor.clone() for name, tensor in ours.decoder.named_parameters()}
        time.sleep(0.2)
        assert all(torch.equal(tensor, now[name]) for name, tensor in ours.decoder.named_parameters())  # it waits
        seconds = ours.whole_epoch()
        assert len(ours.loader.waits) == 15 and ours.loader.captions == 150
        assert ours.loader.seconds <= seconds and ours.rate == 150 / ours.loader.seconds
    assert "fit" not in [thread.name for thread in threading.enumerate()]


def test_time_between_two_requests_counts_and_warm_steps_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, calls = loop(), []

    def slow(*arguments: object) -> None:
        calls.append(1)
        time.sleep(1.0 if len(calls) <= 2 else 0.1)

    monkeypatch.setattr(TRAIN, "set_rates", slow)
    with ours:
        ours.run(2, 3)
    assert len(calls) == 5 and 0.3 <= ours.loader.seconds < 1.2 and sum(ours.loader.waits) < 1


def test_an_error_of_the_loop_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("in the loop")

    monkeypatch.setattr(TRAIN, "set_rates", fail)
    with loop() as ours, pytest.raises(RuntimeError, match="in the loop"):
        ours.run(2, 3)


def test_the_command_reports_both_batch_sizes_and_precisions() -> None:
    sizes = [
        "--images",
        "20",
        "--channels",
        "8",
        "--hidden",
        "8",
        "--vocabulary",
        "50",
        "--batch-size",
        "10",
        "--batch-size",
        "25",
    ]
    done = CliRunner().invoke(
        main, ["--device", "cpu", "--threads", "1", "--steps", "2", "--rounds", "1", *sizes], catch_exceptions=False
    )
    rows = json.loads(done.output.splitlines()[-1])
    assert [row["name"].split(":")[0] for row in rows] == [
        f"{what} batch {size} {precision}{end}"
        for size in (10, 25)
        for precision in ("fp32", "bf16")
        for what, end in (("training loop", " / textbook fp32"), ("epoch", ""))
    ]
    epochs = rows[1::2]
    assert [row["steps_in_epoch"] for row in epochs] == [10, 10, 4, 4]  # 100 captions, five an image
    for row in epochs:  # a single round: the extrapolation is the steps' time and what comes before them
        assert row["ours"] >= row["steps_in_epoch"] * row["milliseconds_a_step"] / 1000 - 0.001
        assert row["ratio"] == pytest.approx(10 / row["ours"], rel=0.05) and row["target"] is None
