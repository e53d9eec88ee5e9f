"""The pipeline under a real DVC: what runs again, what is restored, what experiments show, what a remote brings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from captioner.report import read_page
from tests.pipeline.workspace import STAGES, Workspace


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Workspace:
    """A repository in which the whole pipeline has run once and is committed."""
    workspace = Workspace.create(tmp_path_factory.mktemp("pipeline") / "repository")
    output = workspace.dvc("repro")
    assert workspace.ran(output) == list(STAGES) or set(workspace.ran(output)) == set(STAGES)
    workspace.commit("reference run")
    return workspace


def test_second_repro_does_nothing_and_the_tree_is_clean(done: Workspace) -> None:
    output = done.dvc("repro")
    assert done.ran(output) == []
    assert "up to date" in output
    assert done.status() == ""


def test_every_out_is_there_and_ignored_by_git(done: Workspace) -> None:
    outs = [
        "data/scenes/images.h5",
        "data/scenes/captions.json",
        "data/scenes/skipped.csv",
        "data/scenes/features/squeezenet1_1.h5",
        "data/scenes/vocab.json",
        "data/scenes/embeddings.npy",
        "models/model.safetensors",
        "models/config.json",
        "results/evaluate/per_image.csv",
        "results/evaluate/statistics.csv",
        "results/evaluate/captions.json",
        "results/report/index.html",
    ]
    for out in outs:
        assert (done.folder / out).exists(), out
    assert done.run("git", "check-ignore", *outs).split() == outs
    assert not list(done.folder.rglob("*.partial"))
    tracked = done.run("git", "ls-files").split()
    assert {
        "dvc.lock",
        "results/train/metrics.json",
        "results/train/history.csv",
        "results/evaluate/metrics.json",
    } <= set(tracked)


def test_another_decoder_trains_and_evaluates_only_and_back_is_restored(done: Workspace) -> None:
    assert done.ran(done.dvc("exp", "run", "-S", "decoder=lstm")) == ["train", "evaluate"]
    assert done.ran(done.dvc("exp", "run", "-S", "decoder=gru")) == []
    assert json.loads((done.folder / "models/config.json").read_text())["decoder"]["decoder"] == "gru"


def test_another_encoder_and_back_extracts_once(done: Workspace) -> None:
    assert done.ran(done.dvc("exp", "run", "-S", "encoder=squeezenet1_0", "-S", "extract.weights=random")) == [
        "extract",
        "train",
        "evaluate",
    ]
    assert done.ran(done.dvc("exp", "run", "-S", "encoder=squeezenet1_1", "-S", "extract.weights=bundled")) == []
    assert done.ran(done.dvc("exp", "run", "-S", "encoder=squeezenet1_0", "-S", "extract.weights=random")) == []
    assert done.ran(done.dvc("exp", "run", "-S", "encoder=squeezenet1_1", "-S", "extract.weights=bundled")) == []
    assert done.status() == ""


def test_another_seed_extracts_nothing(done: Workspace) -> None:
    assert done.ran(done.dvc("exp", "run", "-S", "seed=2")) == ["train", "evaluate"]
    assert done.ran(done.dvc("exp", "run", "-S", "seed=1")) == []
    compared = json.loads(done.run("python", "-c", "from captioner.cli import main; main()", "compare", "--json"))
    [setting] = [setting for setting in compared["settings"] if len(setting["experiments"]) > 1]
    assert sorted(run["seed"] for run in setting["experiments"]) == [1, 2] and setting["decoder"] == "gru"
    metrics = json.loads((done.folder / "results/evaluate/metrics.json").read_text())
    [main] = json.loads(
        done.run("python", "-c", "from captioner.cli import main; main()", "compare", "--json", "main")
    )["settings"]
    assert {name: score["value"] for name, score in main["scores"].items()} == pytest.approx(
        {name: metrics[name] for name in main["scores"]}, abs=2e-6
    )


def test_a_runtime_parameter_runs_nothing(done: Workspace) -> None:
    assert done.ran(done.dvc("exp", "run", "-S", "runtime.workers=2")) == []
    done.run("git", "checkout", "-q", "params.yaml")


def test_a_mistyped_parameter_is_an_error_without_a_traceback(done: Workspace) -> None:
    output = done.dvc("exp", "run", "-S", "train.epochs=many", check=False)
    assert "train.epochs='many'" in output and "Traceback" not in output
    done.run("git", "checkout", "-q", "params.yaml")


def test_queue_runs_every_combination(done: Workspace) -> None:
    done.dvc("exp", "run", "--queue", "-S", "decoder=lstm,gru", "-S", "seed=1,2")
    done.dvc("queue", "start", "--jobs", "1")
    for _ in range(120):
        status = done.dvc("queue", "status")
        if not re.search(r"Running|Queued", status):
            break
        subprocess.run(["sleep", "2"], check=True)
    assert len(re.findall(r"Success", status)) == 4, status
    table = json.loads(done.dvc("exp", "show", "--json"))
    runs = {
        (
            run["revs"][0]["data"]["params"]["params.yaml"]["data"]["decoder"],
            run["revs"][0]["data"]["params"]["params.yaml"]["data"]["seed"],
        )
        for run in table[1]["experiments"] or []
    }
    assert {("lstm", 1), ("lstm", 2), ("gru", 1), ("gru", 2)} <= runs


def test_show_and_diffs_say_something(done: Workspace) -> None:
    done.dvc("exp", "run", "-S", "decoder=lstm")
    table = done.dvc("exp", "show", "--csv")  # the same columns as on a terminal, none cut off
    for word in ("bleu_4", "meteor", "cider_d", "decoder"):
        assert word in table
    diff = done.dvc("metrics", "diff")
    assert "results/evaluate/metrics.json" in diff and "cross_entropy" in diff
    shown = done.run("make", "-o", "install", "show")
    assert "bleu_4" in shown and "decoder" in shown and "jpeg" not in shown
    done.dvc("plots", "show", "-o", "plots")
    page = (done.folder / "plots/index.html").read_text()
    assert "train_cross_entropy" in page and "beam_size" in page and "cider_d" in page and page.count("<img") == 1
    shutil.rmtree(done.folder / "plots")
    done.dvc("plots", "diff", "-o", "plots")
    page = (done.folder / "plots/index.html").read_text()
    assert "val_cross_entropy" in page and "beam_size" in page and page.count("<img") == 2
    shutil.rmtree(done.folder / "plots")
    done.run(
        "python", "-c", "from captioner.cli import main; main()", "report", "workspace", "main", "--out", "beside.html"
    )
    beside = read_page((done.folder / "beside.html").read_text(), "beside")
    assert [experiment["parameters"]["decoder"] for experiment in beside["experiments"]] == ["lstm", "gru"] and beside[
        "pairs"
    ]
    (done.folder / "beside.html").unlink()
    done.dvc("exp", "run", "-S", "decoder=gru")


def test_a_remote_spares_a_second_clone_the_work(done: Workspace, tmp_path) -> None:
    done.dvc("exp", "run", "-S", "decoder=lstm")
    done.dvc("remote", "add", "-d", "-f", "shared", str(tmp_path / "remote"))
    done.commit("lstm, and a remote")
    done.dvc("push", "--run-cache")
    clone = _clone(done, tmp_path / "clone")
    clone.dvc("pull", "--run-cache")
    assert clone.ran(clone.dvc("repro")) == []
    assert (clone.folder / "models/model.safetensors").read_bytes() == (
        done.folder / "models/model.safetensors"
    ).read_bytes()
    assert clone.ran(clone.dvc("exp", "run", "-S", "decoder=gru")) == ["train", "evaluate"]


def _clone(workspace: Workspace, folder: Path) -> Workspace:
    subprocess.run(["git", "clone", "-q", str(workspace.folder), str(folder)], check=True)
    clone = Workspace(folder)
    clone.run("git", "config", "user.email", "test@example.org")
    clone.run("git", "config", "user.name", "test")
    return clone


def test_an_edited_table_downloads_again(tmp_path) -> None:
    workspace = Workspace.create(tmp_path / "repository", dataset="custom", download={"scenes": 20})
    images = tmp_path / "images"
    images.mkdir()
    for index in range(12):
        Image.new("RGB", (64, 64), (20 * index, 100, 50)).save(images / f"{index}.jpg")
    table = tmp_path / "images" / "captions.csv"
    rows = [f"{index}.jpg,an image number {index}" for index in range(11)]
    table.write_text("\n".join(["image,caption", *rows]))
    workspace.set_parameters({"download": {"captions": str(table)}})
    assert workspace.ran(workspace.dvc("repro", "download")) == ["download"]
    assert workspace.ran(workspace.dvc("repro", "download")) == []
    table.write_text("\n".join(["image,caption", *rows, "11.jpg,one more image"]))
    assert workspace.ran(workspace.dvc("repro", "download")) == ["download"]
    captions = json.loads((workspace.folder / "data/custom/captions.json").read_text())
    assert len(captions["images"]) == 12
