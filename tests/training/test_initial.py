"""Training that begins from a trained model."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from captioner import teacher_forcing
from captioner.errors import CaptionerError, Interrupted
from captioner.model_io import load_model
from captioner.training import validation
from captioner.training.checkpoint import read_state
from captioner.vocabulary.vocabulary import Vocabulary
from tests.model_files import replace_weights
from tests.training.cuts import power_cut
from tests.training.runs import Runs, torchrun_environments
from tests.training.small import history, make_data, metrics, result_bytes, run, small_parameters, with_runtime
from tests.training.watching import Watch, weights_of

STILL = {"learning_rate": 0.0, "projection_learning_rate": 0.0}
ALONE: dict[str, Any] = {"epochs": 0, "scst_epochs": 2, "scst_learning_rate": 3e-3, "patience": 9}


@pytest.fixture(scope="module")
def base(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run whose model others begin from."""
    return run(
        tmp_path_factory.mktemp("base"), data, small_parameters(epochs=4, learning_rate=0.02, plateau_on="val_cider_d")
    )


def beginning(base: Path, **options: Any) -> Any:
    return small_parameters(init_from=str(base / "models"), **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "models/model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def best_row(folder: Path) -> dict[str, str]:
    return history(folder)[metrics(folder)["best_epoch"] - 1]


def test_training_at_a_rate_of_0_leaves_the_loaded_weights(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """Word vectors too, whatever the file of this run's says; dropout may be another."""
    other = tmp_path / "other.npy"
    np.save(other, np.load(data["embeddings"]) + 1)
    run(tmp_path, {**data, "embeddings": other}, beginning(base, **STILL, epochs=2, dropout=0.5))
    assert same(weights(tmp_path), weights(base))
    begin, *rows = history(tmp_path)
    assert [row["epoch"] for row in (begin, *rows)] == ["0", "1", "2"]
    for name in ("val_cross_entropy", "val_token_accuracy"):
        assert begin[name] == rows[0][name] == rows[1][name] == best_row(base)[name]
    assert begin["learning_rate"] == begin["train_cross_entropy"] == begin["tokens"] == "" and list(begin) == [
        name for name in history(base)[0] if name not in ("val_bleu_4", "val_cider_d")
    ]
    found = metrics(tmp_path)
    assert (found["best_epoch"], found["epochs"], found["stopped"]) == (
        0,
        2,
        "epochs",
    ) and "train_cross_entropy" not in found
    assert len(json.loads((tmp_path / "results/timing.json").read_text())["epoch_seconds"]) == 2


def test_tuned_word_vectors_come_along(data: dict[str, Path], tmp_path: Path) -> None:
    tuned = run(tmp_path / "tuned", data, small_parameters(epochs=1, tune_embeddings=True))
    frozen = run(tmp_path / "frozen", data, beginning(tuned, epochs=1))
    assert not np.array_equal(weights(tuned)["embedding.weight"], np.load(data["embeddings"]))
    assert torch.equal(weights(frozen)["embedding.weight"], weights(tuned)["embedding.weight"])
    assert (
        not same(weights(frozen), weights(tuned)) and not load_model(frozen / "models").decoder.config.tune_embeddings
    )


@pytest.mark.parametrize("bad", [False, True])
def test_the_published_model_is_never_worse_than_the_loaded_one(
    data: dict[str, Path], base: Path, tmp_path: Path, bad: bool
) -> None:
    rates = {"learning_rate": 1.0, "projection_learning_rate": 1.0} if bad else {}
    run(tmp_path, data, beginning(base, **rates, epochs=3, patience=2))
    rows = history(tmp_path)
    entropies = [float(row["val_cross_entropy"]) for row in rows]
    best = entropies.index(min(entropies))
    assert (best == 0) == bad and metrics(tmp_path)["best_epoch"] == best
    assert same(weights(tmp_path), weights(base)) == bad
    if bad:
        assert (
            metrics(tmp_path)["stopped"] == "patience" and len(rows) == 3
        )  # the loaded weights are what it waits for to be outdone


@pytest.fixture
def before(watch: Watch) -> list[dict[str, torch.Tensor]]:
    """The weights before each step of a test's runs."""
    found: list[dict[str, torch.Tensor]] = []
    watch.before.append(lambda decoder, _: found.append(weights_of(decoder)))
    return found


@pytest.mark.parametrize("options", [{"epochs": 1}, ALONE])
def test_the_first_step_begins_from_the_loaded_weights(
    data: dict[str, Path],
    base: Path,
    tmp_path: Path,
    before: list[dict[str, torch.Tensor]],
    options: dict[str, Any],
) -> None:
    run(tmp_path, data, beginning(base, **options))
    assert same(before[0], weights(base)) and not same(before[1], weights(base))


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 2, "tie_weights": True, "embedding_size": 6},
        {"norm": "batch", "attention": "hard", "decoder": "lstm"},
    ],
)
def test_decoders_of_any_shape(
    data: dict[str, Path], tmp_path: Path, before: list[dict[str, torch.Tensor]], shape: dict[str, Any]
) -> None:
    """Running statistics and vectors that are used twice are part of what is loaded."""
    trained = run(tmp_path / "trained", data, small_parameters(**shape, epochs=1))
    before.clear()
    run(tmp_path / "again", data, beginning(trained, **shape, epochs=1))
    assert same(before[0], load_model(trained / "models").decoder.state_dict())
    assert history(tmp_path / "again")[0]["val_cross_entropy"] == history(trained)[-1]["val_cross_entropy"]


def test_self_critical_training_alone(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    run(tmp_path, data, beginning(base, **ALONE))
    begin, *rows = history(tmp_path)
    assert len(rows) == 2 and all(
        row["train_reward"] and int(row["samples"]) == 5 * 32 and row["learning_rate"] == "0.003" for row in rows
    )
    assert begin["val_cider_d"] == best_row(base)["val_cider_d"] and "train_cross_entropy" not in begin
    scores = [float(row["val_cider_d"]) for row in (begin, *rows)]
    found = metrics(tmp_path)
    assert found["best_epoch"] == scores.index(max(scores)) > 0 and found["epochs"] == 2
    assert not same(weights(tmp_path), weights(base))


def refused(data: dict[str, Path], folder: Path, parameters: Any, *words: str) -> None:
    with pytest.raises(CaptionerError) as error:
        run(folder, data, parameters)
    assert "\n" not in error.value.message
    for word in words:
        assert word in error.value.message
    assert not (folder / "results").exists()


def test_no_epochs_are_refused_where_they_make_no_sense(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    refused(data, tmp_path, beginning(base, epochs=0), "train.epochs=0", "nothing to train", "train.scst_epochs")
    refused(data, tmp_path, small_parameters(epochs=0, scst_epochs=1), "train.epochs=0", "train.init_from")


DIFFERENT = [
    ({"hidden_size": 20}, "hidden_size=16, not 20; set train.hidden_size=16"),
    ({"feature_size": 16}, "feature_size=12, not 16; set train.feature_size=12"),
    ({"position": "none"}, "position=learned, not none; set train.position=learned"),
    ({"embedding_size": 9}, "embedding_size=8, not 9; set train.embedding_size=8"),
    ({"layers": 2}, "layers=1, not 2; set train.layers=1"),
    ({"norm": "batch"}, "norm=layer, not batch; set train.norm=layer"),
    ({"decoder": "lstm"}, "decoder=gru, not lstm; set decoder=gru"),
    ({"attention": "dot"}, "attention=soft, not dot; set attention=soft"),
]


@pytest.mark.parametrize(("changes", "words"), DIFFERENT)
def test_another_decoder_is_refused(
    data: dict[str, Path], base: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    refused(
        data,
        tmp_path,
        beginning(base, **changes),
        f"train.init_from={base / 'models'}: its decoder has {words}, or leave it out",
    )


def test_other_words_or_vectors_are_refused(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    words = Vocabulary.load(data["vocab"]).words
    for number, (changed, said) in enumerate(
        [
            (
                [*words[:6], words[7], words[6], *words[8:]],
                f"its word 6 is {words[6]!r}, that of this vocabulary {words[7]!r}",
            ),
            ([*words, "zebra"], f"its vocabulary has {len(words)} words, this one {len(words) + 1}"),
        ]
    ):
        Vocabulary(changed, [0] * len(changed), {"max_length": 12}).save(tmp_path / "vocab.json")
        np.save(tmp_path / "vectors.npy", np.zeros((len(changed), 8), np.float32))
        other = {**data, "vocab": tmp_path / "vocab.json", "embeddings": tmp_path / "vectors.npy"}
        refused(other, tmp_path / str(number), beginning(base), "train.init_from=", said, "vocab.*")
    np.save(tmp_path / "short.npy", np.load(data["embeddings"])[:, :5])
    refused(
        {**data, "embeddings": tmp_path / "short.npy"},
        tmp_path / "short",
        beginning(base),
        "vector_size=8, not 5; set vocab.dimension=8",
    )


def test_features_of_another_encoder_are_refused(base: Path, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", views=2, encoder="squeezenet1_0")
    refused(
        other,
        tmp_path,
        beginning(base, encoder="squeezenet1_0"),
        "encoder is squeezenet1_0, not squeezenet1_1",
        "train.init_from",
    )
    other = make_data(tmp_path / "weights", views=2, weights_sha256="ab" * 32)
    refused(other, tmp_path, beginning(base), "weights_sha256 is abababababab", str(base / "models"))


def test_a_folder_without_a_usable_model_is_refused(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    refused(data, tmp_path, beginning(tmp_path / "absent"), "config.json: cannot be read", "name a folder that has one")
    copy = tmp_path / "copy/models"
    shutil.copytree(base / "models", copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["word.weight"][0, 0] = float("nan")
    replace_weights(copy, tensors)
    refused(data, tmp_path, beginning(copy.parent), "its tensor word.weight is not finite")
    replace_weights(copy, b"x" * 100)
    refused(data, tmp_path, beginning(copy.parent), "no readable weights")


def test_the_runs_own_folder_is_refused(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(base / "models", folder / "models")
    refused(
        data, folder, beginning(tmp_path / "x/../run"), "this run's own model goes there", "copy the folder elsewhere"
    )


def cut_at(newest: str, folder: Path, data: dict[str, Path], parameters: Any) -> None:
    """A run that ends when it has saved that checkpoint."""
    with power_cut(newest):
        run(folder, data, with_runtime(parameters, checkpoint_seconds=0))


@pytest.mark.parametrize("newest", ["000001-000000002", "000002-000000000", "000003-000000001"])
@pytest.mark.parametrize("options", [{"epochs": 2, "scst_epochs": 1, "ema": 0.5}, {**ALONE, "scst_epochs": 3}])
def test_resumes_exactly(
    data: dict[str, Path], base: Path, tmp_path: Path, options: dict[str, Any], newest: str
) -> None:
    parameters = beginning(base, **options)
    whole = result_bytes(run(tmp_path / "whole", data, parameters))
    cut_at(newest, tmp_path / "cut", data, parameters)
    assert result_bytes(run(tmp_path / "cut", data, parameters)) == whole


def test_a_signal_in_the_first_validation(
    data: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_CAPTIONS", 8)  # several batches
    original, parameters = teacher_forcing.token_cross_entropy, beginning(base, epochs=1)

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    whole = result_bytes(run(tmp_path / "whole", data, parameters))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(teacher_forcing, "token_cross_entropy", signalled)
        run(tmp_path / "cut", data, parameters)
    _, state = read_state(tmp_path / "cut/models.partial")
    assert (state["epoch"], state["step"], state["history"]) == (1, 0, [])
    assert result_bytes(run(tmp_path / "cut", data, parameters)) == whole


def test_another_models_bytes_begin_afresh_and_the_same_elsewhere_go_on(
    data: dict[str, Path], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copied = tmp_path / "a/models"
    shutil.copytree(base / "models", copied)
    cut_at("000002-000000001", tmp_path / "cut", data, beginning(copied.parent))
    capsys.readouterr()
    tensors = load_file(copied / "model.safetensors")
    tensors["vocabulary.bias"] += 0.25
    replace_weights(copied, tensors)
    other = run(tmp_path / "cut", data, beginning(copied.parent))
    assert "unfinished work was for other init_from; starting afresh" in capsys.readouterr().err
    assert result_bytes(other) == result_bytes(run(tmp_path / "other", data, beginning(copied.parent)))
    shutil.rmtree(tmp_path / "cut")
    cut_at("000002-000000001", tmp_path / "cut", data, beginning(base))
    shutil.copytree(base / "models", tmp_path / "b/models")
    capsys.readouterr()
    elsewhere = run(tmp_path / "cut", data, beginning(tmp_path / "b"))
    assert "going on with unfinished work" in capsys.readouterr().err
    assert result_bytes(elsewhere) == result_bytes(run(tmp_path / "whole", data, beginning(base)))


def test_a_stop_file_in_the_first_epoch_publishes_the_loaded_model(
    data: dict[str, Path], base: Path, tmp_path: Path, watch: Watch
) -> None:
    watch.before.append(lambda *_: (tmp_path / "models.partial/STOP").touch())
    run(tmp_path, data, beginning(base, **ALONE))
    assert same(weights(tmp_path), weights(base))
    assert [row["epoch"] for row in history(tmp_path)] == ["0"]
    found = metrics(tmp_path)
    assert (found["best_epoch"], found["epochs"], found["stopped"]) == (0, 0, "by file")


def test_several_ranks(runs: Runs, data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """They begin from the same weights, and refuse to begin from different ones."""
    environments = torchrun_environments(2)
    still = beginning(base, **STILL, epochs=1)
    processes = [runs.start(tmp_path, data, still, environments[rank], tmp_path / f"log{rank}") for rank in range(2)]
    assert [runs.wait(process) for process in processes] == [0, 0], (tmp_path / "log0").read_text()
    assert same(weights(tmp_path), weights(base)) and "2 processes" in (tmp_path / "log0").read_text()
    other = run(tmp_path / "other", data, small_parameters(epochs=1))
    environments, own = torchrun_environments(2), [beginning(base), beginning(other)]
    processes = [
        runs.start(tmp_path / "no", data, own[rank], environments[rank], tmp_path / f"no{rank}") for rank in range(2)
    ]
    assert runs.wait(processes[1]) == 1 and "other init_from than rank 0 has" in (tmp_path / "no1").read_text()
    os.kill(processes[0], signal.SIGKILL)  # as torchrun ends the other ranks
    assert runs.wait(processes[0]) != 0 and not (tmp_path / "no/models").exists()
