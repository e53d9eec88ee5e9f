"""The pipeline under a real DVC: what runs again, what is restored, what experiments show, what a remote brings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from captioner.features.checksums import crc32
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
        "results/evaluate/captions.json",
        "results/report/index.html",
    ]
    for out in outs:
        assert (done.folder / out).exists(), out
    assert done.run("git", "check-ignore", *outs).split() == outs
    assert not list(done.folder.rglob("*.partial"))
    curves = ("learning_rate", "projection_learning_rate", "tokens", *("train_cross_entropy", "val_cross_entropy"))
    assert set(done.run("git", "ls-files", "dvc.lock", "results").split()) == {
        "dvc.lock",
        "results/train/metrics.json",
        *(f"results/train/plots/metrics/{name}.tsv" for name in (*curves, "val_token_accuracy")),
        *(f"results/evaluate/{name}.json" for name in ("metrics", "experiment", "signature", "statistics")),
        "results/evaluate/plots/beam_sweep.csv",
        "results/evaluate/plots/examples.png",
    }


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
        {name: metrics[name] for name in main["scores"]}, abs=1e-4
    )


def test_a_runtime_parameter_runs_nothing(done: Workspace) -> None:
    assert done.ran(done.dvc("exp", "run", "-S", "runtime.workers=2")) == []
    done.run("git", "checkout", "-q", "params.yaml")


def test_a_mistyped_parameter_is_an_error_without_a_traceback(done: Workspace) -> None:
    output = done.dvc("exp", "run", "-S", "train.epochs=many", check=False)
    assert "train.epochs='many'" in output and "Traceback" not in output
    done.run("git", "checkout", "-q", "params.yaml")


def test_a_mistyped_name_is_an_error_where_all_is_cached_and_can_be_undone(done: Workspace) -> None:
    output = done.dvc("exp", "run", "-S", "+hidden_size=64", check=False)
    assert "failed to reproduce 'check'" in output
    [line] = [line for line in output.splitlines() if line.startswith("Error:")]
    assert "unknown parameter hidden_size=64; did you mean train.hidden_size?" in line
    assert "`git checkout params.yaml`" in line
    done.run("git", "checkout", "-q", "params.yaml")  # as it says
    assert done.ran(done.dvc("exp", "run")) == [] and done.status() == ""


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
    columns = table.splitlines()[0].split(",")
    first = columns.index("Encoder")
    # State and Executor where an experiment was queued
    assert set(columns[:first]) <= {"Experiment", "rev", "typ", "Created", "parent", "State", "Executor"}
    assert columns[first : first + 4] == ["Encoder", "Decoder", "Attention", "Seed"]
    scores = [name for name in ("bleu_4", "meteor", "cider_d") if name in columns]  # METEOR needs a Java
    assert columns[first + 4 : first + 4 + len(scores)] == scores and len(scores) >= 2
    diff = done.dvc("metrics", "diff")
    assert "results/evaluate/metrics.json" in diff and "cross_entropy" in diff
    shown = done.run("make", "--no-print-directory", "-o", "install", "show")
    assert "bleu_4" in shown and "Decoder" in shown and "jpeg" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    done.run("python", "-m", "captioner.report.dvc_plots", ".dvc/plots/page.html")  # as `make install` does
    done.dvc("config", "--local", "plots.html_template", "plots/page.html")
    done.dvc("plots", "show", "-o", "plots")
    page = (done.folder / "plots/index.html").read_text()
    head, body = page.rsplit("\n<body>\n", 1)
    assert not re.search(r"<(script|link)[^>]*(src|href)=", page) and "window.vegaEmbed" in head  # no network
    assert body.count("<img") == 1
    specs = [json.loads(spec) for spec in re.findall(r"var spec = (.*);\n", body)]
    specs = [spec for spec in specs if spec]  # the page drops the empty ones, of files without rows
    assert all(spec["encoding"]["x"]["axis"] == {"format": "d", "tickMinStep": 1} for spec in specs)
    fields = [
        frozenset((row.get("field") or spec["encoding"]["y"]["field"]) for row in spec["data"]["values"])
        for spec in specs
    ]
    assert len(set(fields)) == len(fields) > 10  # none is drawn twice
    assert frozenset({"val_cross_entropy"}) in fields and frozenset({"cider_d"}) in fields
    assert {spec["encoding"]["x"]["title"] for spec in specs} == {"epoch", "beam size"}
    shutil.rmtree(done.folder / "plots")
    done.dvc("plots", "diff", "-o", "plots")
    page = (done.folder / "plots/index.html").read_text()
    assert "val_cross_entropy" in page and "beam_size" in page and page.rsplit("\n<body>\n", 1)[1].count("<img") == 2
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


@pytest.mark.slow
def test_another_processor_can_run_and_compare(done: Workspace, tmp_path) -> None:
    """Its features differ in the last bit, so all after them does, and nothing of the commit is in its cache."""
    first = done.run("git", "rev-list", "--max-parents=0", "HEAD").strip()
    base = done.run("git", "log", "-1", "--format=%H", "--grep=reference run").strip()
    for commit in (first, base):  # before and after somebody has committed results
        clone = _clone(done, tmp_path / commit)
        clone.run("git", "checkout", "-q", "-B", "here", commit)
        clone.dvc("repro", "extract", "vocab")
        path = clone.folder / "data/scenes/features/squeezenet1_1.h5"
        content = path.read_bytes()
        path.unlink()  # a link to the cache
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            bits = file["features"][:].view(np.uint16)
            features = np.where(bits & 0x7FFF, bits ^ 1, bits).view(np.float16)
            file["features"][:], file["crc32"][:] = features, crc32(features).reshape(features.shape[:2])
        clone.dvc("commit", "-f", "-q", "extract")
        assert clone.ran(clone.dvc("repro")) == ["train", "evaluate"]
        changed = [line[3:] for line in clone.status().splitlines() if line.startswith((" M", "M", " D", "D"))]
        assert commit == base or changed == []
        captioner = ("python", "-c", "from captioner.cli import main; main()")
        compared = clone.run(*captioner, "compare")
        assert ("not compared: here: it has no dvc.lock" in compared) == (commit == first)
        assert ("\n2 - 1 " in compared) == (commit == base)
        report = clone.run(*captioner, "report", "workspace", "HEAD")
        assert "not shown: HEAD: " in report and "report.html: workspace\n" in report
        for command in (("metrics", "diff"), ("plots", "diff"), ("exp", "show", "--no-pager")):
            assert "Traceback" not in clone.dvc(*command)
        assert clone.ran(clone.dvc("exp", "run", "-S", "decoder=lstm")) == ["train", "evaluate"]


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
