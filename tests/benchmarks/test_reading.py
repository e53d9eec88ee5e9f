"""The benchmark of the time that training waits for data."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from benchmarks.coco import Sizes, make_table
from benchmarks.loops import TimedLoader
from benchmarks.read import write_rows
from benchmarks.reading import main, run
from captioner.features.readers import RamReader
from captioner.training.data import epoch_batches

TINY = Sizes(images=20, captions=100, positions=4, channels=8, vocabulary=50, hidden=8)


def test_a_slow_reader_shows(tmp_path: Path, monkeypatch) -> None:
    gather = RamReader._gather
    monkeypatch.setattr(RamReader, "_gather", lambda self, flat: time.sleep(0.2) or gather(self, flat))
    store = write_rows(tmp_path / "f.h5", TINY.images, TINY.positions, TINY.channels)
    disk, ram = run(TINY, store, torch.device("cpu"), 10, "fp32", 3, 1)
    assert disk["name"].startswith("disk") and ram["name"].startswith("ram")
    assert (
        50 < ram["waited_milliseconds_a_step"] <= 250
        and disk["waited_milliseconds_a_step"] < ram["waited_milliseconds_a_step"]
    )
    # with one round, the fraction waited is the wait of a step by its time (10 captions at the rate)
    assert abs(1 - ram["ratio"] - ram["waited_milliseconds_a_step"] / 1000 * ram["ours"] / 10) < 0.01
    assert ram["ratio"] < 0.75 and ram["met"] is False


def test_the_loader_is_the_projects_but_for_the_clock(tmp_path: Path) -> None:
    store = write_rows(tmp_path / "f.h5", TINY.images, TINY.positions, TINY.channels)
    with store.reader("ram") as reader:
        loader = TimedLoader(make_table(TINY), np.arange(TINY.images), reader, torch.device("cpu"))
        loader.limit(2, 100)
        groups = [[batch] for batch in epoch_batches(loader.table, 10, 0, 1, 0, 1)]
        streamed = list(loader.stream(groups))
        assert len(loader.waits) == len(streamed) == len(groups) == 10
        for (batch,), ((features, tokens),) in zip(groups, streamed):
            again = loader.load(batch)
            assert torch.equal(features, again[0]) and torch.equal(tokens, again[1])


def test_the_command_runs_in_small() -> None:
    small = [
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
        "--steps",
        "3",
        "--rounds",
        "2",
    ]
    done = CliRunner().invoke(main, ["--threads", "1", *small], catch_exceptions=False)
    rows = json.loads(done.output.splitlines()[-1])
    assert [row["name"].split(":")[0] for row in rows] == ["disk", "ram"]
    for row in rows:
        assert 0 < row["ours"] <= row["other"] and row["target"] == 0.97 and row["row_bytes"] == 2 * 49 * 8
