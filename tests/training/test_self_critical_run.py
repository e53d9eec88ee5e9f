"""Self-critical training as the second phase of a run."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.errors import CaptionerError
from captioner.model_io import load_model
from captioner.training.inputs import load_inputs
from captioner.training.objectives import SelfCritical
from captioner.vocabulary.vocabulary import PAD
from tests.training.cuts import power_cut
from tests.training.small import history, metrics, result_bytes, run, small_parameters, with_runtime

OPTIONS: dict[str, Any] = {
    "epochs": 4,
    "scst_epochs": 2,
    "scst_learning_rate": 3e-3,
    "learning_rate": 0.02,
    "patience": 9,
}


@pytest.fixture(scope="module")
def whole(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole"), data, small_parameters(**OPTIONS))


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, torch.Tensor], Any, Any]]:
    """Weights before, references of each batch and result of every self-critical step from here on."""
    seen, references = [], []
    prepare, finish = SelfCritical.prepare, SelfCritical.finish

    def prepare_and_note(self: SelfCritical, features: torch.Tensor, tokens: torch.Tensor, *rest: Any) -> Any:
        references.append(tokens)
        return prepare(self, features, tokens, *rest)

    def finish_and_note(self: SelfCritical, *arguments: Any) -> Any:  # before the optimizer's step
        before = {name: parameter.detach().clone() for name, parameter in self.decoder.named_parameters()}
        result = finish(self, *arguments)
        seen.append((before, references.copy(), result))
        references.clear()
        return result

    monkeypatch.setattr(SelfCritical, "prepare", prepare_and_note)
    monkeypatch.setattr(SelfCritical, "finish", finish_and_note)
    return seen


def test_the_second_phase_begins_from_the_best_of_the_first(
    data: dict[str, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    again = run(tmp_path / "again", data, small_parameters(**OPTIONS))
    assert result_bytes(again) == result_bytes(whole)
    first = run(tmp_path / "first", data, small_parameters(**{**OPTIONS, "scst_epochs": 0}))
    stored = dict(load_model(first / "models").decoder.named_parameters())
    assert all(torch.equal(seen[0][0][name], tensor) for name, tensor in stored.items())
    rows, before = history(whole), history(first)
    assert [{name: row[name] for name in before[0]} for row in rows[:4]] == before[:4] and len(rows) == 6
    assert all(row["train_reward"] == row["samples"] == "" for row in rows[:4])
    for row in rows[4:]:
        assert row["train_cross_entropy"] == row["tokens"] == ""
        assert row["learning_rate"] == row["projection_learning_rate"] == "0.003"
    for number, row in enumerate(rows[4:]):
        results = [result for _, _, result in seen[number * len(seen) // 2 : (number + 1) * len(seen) // 2]]
        assert int(row["samples"]) == sum(count for _, count in results) == 5 * 32  # images of the training split
        assert float(row["train_reward"]) == pytest.approx(
            100 * sum(total.item() for total, _ in results) / (5 * 32), rel=1e-5
        )


def test_the_best_epoch_is_the_one_of_the_best_cider_d(data: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    """Of the second phase's and the first one's best by cross entropy; with some seed it is one of the second phase."""
    others = [replace(small_parameters(**OPTIONS), seed=seed) for seed in (2, 3, 4)]
    improved = 0
    for folder in (whole, *(run(tmp_path / str(number), data, other) for number, other in enumerate(others))):
        rows, found = history(folder), metrics(folder)
        first = min(range(4), key=lambda row: float(rows[row]["val_cross_entropy"]))
        best = max((first, 4, 5), key=lambda row: float(rows[row]["val_cider_d"]))
        assert found["best_epoch"] == best + 1
        assert found["val_cider_d"] == pytest.approx(float(rows[best]["val_cider_d"]), rel=1e-5)
        if best > first:
            improved += 1
            assert found["train_reward"] == pytest.approx(float(rows[best]["train_reward"]), rel=1e-5)
            assert "train_cross_entropy" not in found
    assert improved


def test_rewards_of_samples_rise(data: dict[str, Path], tmp_path: Path) -> None:
    options = {**OPTIONS, "scst_epochs": 10, "hidden_size": 32, "dropout": 0.0, "plateau_factor": 1.0, "patience": 30}
    rewards = [float(row["train_reward"]) for row in history(run(tmp_path, data, small_parameters(**options)))[4:]]
    assert sum(rewards[-3:]) > 1.2 * sum(rewards[:3])


def test_rewards_see_all_references_of_an_image(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    run(
        tmp_path,
        data,
        small_parameters(**{**OPTIONS, "epochs": 1, "scst_epochs": 1}, captions_per_image=1, accumulate=2),
    )
    table = load_inputs(
        small_parameters(), *(data[name] for name in ("features", "captions", "vocab", "embeddings"))
    ).train
    given = [references for _, batches, _ in seen for references in batches]
    assert max(len(batches) for _, batches, _ in seen) == 2
    assert sum(len(references) for references in given) == len(table.image_ids)
    assert sum(int((references[:, :, 0] != PAD).sum()) for references in given) == len(table)


@pytest.mark.parametrize("newest", ["000004-000000002", "000005-000000000", "000005-000000003", "000006-000000000"])
def test_resumes_exactly(data: dict[str, Path], whole: Path, tmp_path: Path, newest: str) -> None:
    """Cut in the first phase, between the phases, within and between epochs of the second: the saved state is of that
    epoch and step."""
    with power_cut(newest):
        run(tmp_path, data, with_runtime(small_parameters(**OPTIONS), checkpoint_seconds=0))
    run(tmp_path, data, small_parameters(**OPTIONS))
    assert result_bytes(tmp_path) == result_bytes(whole)


def test_learning_rates_fall_when_cider_d_stops_rising(data: dict[str, Path], tmp_path: Path) -> None:
    """The cross entropy, on which they fall in the first phase, says nothing here."""
    options = {
        **OPTIONS,
        "epochs": 1,
        "scst_epochs": 6,
        "scst_learning_rate": 0.02,
        "plateau_patience": 0,
        "plateau_factor": 0.5,
        "gap_patience": 1,
    }
    rows = history(run(tmp_path, data, small_parameters(**options)))[1:]
    rate, best = 0.02, float("-inf")
    for row in rows:
        assert float(row["learning_rate"]) == pytest.approx(rate)
        value = float(row["val_cider_d"])
        rate, best = (rate, value) if value > best else (rate / 2, best)
    assert len(rows) == 6 and rate < 0.02


def test_a_cosine_begins_anew(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the whole rate down to nothing over this phase's two epochs; history has the rate of an epoch's last
    step."""
    seen = watch(monkeypatch)
    rows = history(run(tmp_path, data, small_parameters(**OPTIONS, cosine=True)))[4:]
    steps = len(seen)
    for row, last in zip(rows, (steps // 2 - 1, steps - 1), strict=True):
        assert float(row["learning_rate"]) == pytest.approx(3e-3 * (1 + math.cos(math.pi * last / steps)) / 2, rel=1e-4)


CHANGES = {
    "scst_epochs": 1,
    "scst_samples": 2,
    "scst_baseline": "greedy",
    "scst_learning_rate": 1e-3,
    "scst_bleu_weight": 2.0,
    "scst_dropout": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_parameter_changes_the_result(data: dict[str, Path], whole: Path, tmp_path: Path, name: str) -> None:
    rows, usual = history(run(tmp_path, data, small_parameters(**{**OPTIONS, name: CHANGES[name]}))), history(whole)
    assert rows[:4] == usual[:4]
    if name == "scst_epochs":
        assert rows == usual[:5]
        return
    assert rows[4]["val_cross_entropy"] != usual[4]["val_cross_entropy"]
    if name == "scst_samples":
        assert int(rows[4]["samples"]) == 2 * 32
    elif name == "scst_learning_rate":
        assert rows[4]["learning_rate"] == rows[4]["projection_learning_rate"] == "0.001"


def test_needs_pycocoevalcap(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pycocoevalcap" else original(name, *rest)
    )
    with pytest.raises(CaptionerError, match=r"train.scst_epochs=2: .*pip install pycocoevalcap==1.2, or take 0"):
        run(tmp_path, data, small_parameters(**OPTIONS))
