"""The report that the stage evaluate writes: it shows what the results hold."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from captioner.cli import main
from captioner.comparison.repository import Checkout
from captioner.evaluation import evaluate, summary
from captioner.evaluation.page_data import novelty
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet, write_captions
from captioner.metrics.diversity import DIVERSITY
from captioner.model_io import load_model, save_model
from captioner.report import read_page
from captioner.vocabulary.vocabulary import START
from tests.evaluation import small

pytestmark = pytest.mark.usefixtures("no_java")

CURVES = {
    "train_cross_entropy": "step\ttrain_cross_entropy\n1\t3.25\n",
    "val_token_accuracy": "step\tval_token_accuracy\n0\t25.0\n1\t50.0\n",
}


@pytest.fixture
def results(paths, tmp_path):
    """A folder of results as the pipeline has it, with training's history."""
    return run(paths, tmp_path / "results")


def run(paths, folder, **options):
    curves = folder / "train/plots/metrics"
    curves.mkdir(parents=True)
    for name, text in CURVES.items():
        (curves / f"{name}.tsv").write_text(text)
    evaluate(
        small.parameters(**options),
        results=folder / "evaluate",
        report=folder / "report/index.html",
        history=curves,
        **paths,
    )
    return folder


def page_of(folder) -> dict:
    return read_page((folder / "report/index.html").read_text(), "page")


def test_it_shows_the_results(results, paths):
    page, captions = page_of(results), CaptionSet.load(paths["captions"])
    [experiment] = page["experiments"]
    with open(results / "evaluate/per_image.csv", newline="") as file:
        rows = {int(row["image_id"]): row for row in csv.DictReader(file)}
    metrics = json.loads((results / "evaluate/metrics.json").read_text())
    assert {image["id"] for image in page["images"]} == set(rows) and page["total"] == 12
    for image, caption in zip(page["images"], experiment["captions"], strict=True):
        row = rows[image["id"]]
        assert " ".join(caption["words"]) == row["caption"] and image["name"] == row["file_name"]
        assert image["references"] == captions.captions(image["id"])
        assert caption["scores"] == pytest.approx({name: float(row[name]) for name in caption["scores"]}, abs=0.006)
        with Image.open(io.BytesIO(base64.b64decode(image["webp"]))) as webp:
            assert webp.format == "WEBP" and webp.size == (image["width"], image["height"]) == (
                (48, 32) if image["id"] % 2 else (32, 40)
            )
    assert {"bleu_4", "cross_entropy", *DIVERSITY} <= set(experiment["scores"])
    for name, found in experiment["scores"].items():
        assert found["value"] == metrics[name] and found["val"] == metrics.get(f"val_{name}")
        assert (found["low"] is None) == (name in ("cross_entropy", "token_accuracy", *DIVERSITY))
        assert found["low"] is None or found["low"] <= found["value"] <= found["high"]
    assert experiment["signature"] == json.loads((results / "evaluate/signature.json").read_text())
    assert experiment["history"] == {
        "epoch": [0, 1],
        "train_cross_entropy": [None, 3.25],
        "val_token_accuracy": [25.0, 50.0],
    }
    assert experiment["beam_sweep"]["sizes"] == [1, 3] and experiment["beam_sweep"]["chosen"] == metrics["beam_size"]
    assert sum(experiment["lengths"]["generated"]) == 12 and sum(experiment["lengths"]["references"]) == 36
    assert experiment["parameters"]["evaluate"]["beam_sizes"] == [1, 3] and "runtime" not in experiment["parameters"]
    assert any("bundled weights" in text for text in experiment["warnings"]) and any(
        "METEOR" in text for text in experiment["warnings"]
    )


def test_attention_is_the_decoders_step_by_step(results, paths):
    """Each word's weights, as a share of the way from an even share to the word's largest, in bytes."""
    model, store, page = load_model(paths["models"]), FeatureStore.open(paths["features"]), page_of(results)
    with store.reader("ram") as reader, torch.no_grad():
        for image, caption in zip(page["images"], page["experiments"][0]["captions"], strict=True):
            cells = np.frombuffer(base64.b64decode(caption["attention"]["cells"]), np.uint8).reshape(
                len(caption["words"]), 6
            )
            memory = model.decoder.encode(reader.read(store.rows([image["id"]])))
            state, word = model.decoder.initial_state(memory, 1), START
            for token, found in zip(model.vocabulary.encode(caption["words"]), cells, strict=True):
                _, state, weights = model.decoder.step(torch.tensor([[word]]), state, memory)
                weights = weights.flatten().numpy()
                assert found == pytest.approx(255 * np.clip((weights - 1 / 6) / (weights.max() - 1 / 6), 0, 1), abs=1.5)
                word = token
            assert caption["attention"]["box"] == [0, 0, 1, 1]


def test_settings_are_those_stored_with_the_model(paths, tmp_path, monkeypatch):
    """params.yaml has gone on to another decoder; page and summary show what the model was trained with."""
    other = {**paths, "models": tmp_path / "models"}
    model = load_model(paths["models"])
    facts = small.model_facts(FeatureStore.open(paths["features"]))
    save_model(other["models"], model.decoder, model.vocabulary, facts | {"training": {"seed": 7, "epochs": 3}})
    changed = dataclasses.replace(small.parameters(), decoder="lstm", attention="none", encoder="alexnet", seed=2)
    monkeypatch.setattr(small, "parameters", lambda **options: changed)
    folder = run(other, tmp_path / "results")
    shown = page_of(folder)["experiments"][0]["parameters"]
    assert {name: shown[name] for name in ("dataset", "encoder", "decoder", "attention", "seed", "train")} == {
        "dataset": "small",
        "encoder": "squeezenet1_1",
        "decoder": "gru",
        "attention": "soft",
        "seed": 7,
        "train": {"epochs": 3},
    }
    signature = json.loads((folder / "evaluate/signature.json").read_text())
    assert [signature[name] for name in ("encoder", "decoder", "attention")] == ["squeezenet1_1", "gru", "soft"]
    text = summary(folder / "evaluate", paths["captions"], small.REPORT, other["models"])
    assert "training: epochs=3 seed=7" in text and "hidden_size=64" in text and "fingerprint 000000000000" in text


def test_report_images(paths, tmp_path):
    """How many are shown; the same sample in every run, and nothing else changes. The text is of all images."""
    none, five, again, all_of_them = (
        run(paths, tmp_path / name, report_images=count) for name, count in (("0", 0), ("5", 5), ("5b", 5), ("99", 99))
    )
    pages = [page_of(folder) for folder in (none, five, all_of_them)]
    assert [["webp" in image for image in page["images"]] for page in pages] == [
        [False] * 12,
        [True] * 5 + [False] * 7,
        [True] * 12,
    ]
    text = [{(image["id"], image["name"], *image["references"]) for image in page["images"]} for page in pages]
    assert text[0] == text[1] == text[2] and len(text[0]) == 12
    for page in pages:
        for image, caption in zip(page["images"], page["experiments"][0]["captions"], strict=True):
            assert caption["words"] and (caption["attention"] is None) == ("webp" not in image)
    assert (five / "report/index.html").read_bytes() == (again / "report/index.html").read_bytes()
    for name in ("metrics.json", "captions.json", "per_image.csv", "plots/examples.png"):
        assert (none / "evaluate" / name).read_bytes() == (all_of_them / "evaluate" / name).read_bytes()


def test_it_names_the_commit_of_the_code(paths, tmp_path, monkeypatch):
    commit = Checkout("0123456789" * 4, "2026-11-28", ["params.yaml"])
    for found, expected in ((commit, dataclasses.asdict(commit)), (None, None)):
        monkeypatch.setattr(sys.modules[evaluate.__module__], "checkout", lambda found=found: found)
        assert page_of(run(paths, tmp_path / str(found)[:4]))["experiments"][0]["commit"] == expected


def test_novelty_by_hand(tmp_path):
    """Of 'a dog runs on the road' three phrases of four words; training has the first."""
    images = [
        {"id": number, "file_name": f"{number}.jpg", "split": split, "height": 8, "width": 8}
        for number, split in ((1, "train"), (2, "test"))
    ]
    texts = [(1, "A dog runs on grass."), (1, "two cats"), (2, "a dog runs on the road")]
    write_captions(
        tmp_path / "c.json",
        images,
        [{"id": index, "image_id": image, "caption": text} for index, (image, text) in enumerate(texts)],
        {},
    )
    found = novelty(
        {2: ["a", "dog", "runs", "on", "the", "road"], 3: ["two", "cats"], 4: ["cats", "two"], 5: []},
        CaptionSet.load(tmp_path / "c.json"),
    )
    assert found == {2: pytest.approx(2 / 3, abs=1e-4), 3: 0, 4: 1, 5: 0}


def test_the_command_puts_folders_side_by_side(paths, results, tmp_path):
    other = run(paths, tmp_path / "other", beam_sizes=[1])
    (other / "train/timing.json").write_text('{"seconds": 12.5}')
    done = CliRunner().invoke(main, ["report", str(results), str(other), "--out", str(tmp_path / "beside.html")])
    assert done.exit_code == 0, done.output
    page = read_page((tmp_path / "beside.html").read_text(), "page")
    assert [len(experiment["captions"]) for experiment in page["experiments"]] == [12, 12] == [len(page["images"])] * 2
    assert page["experiments"][1]["seconds"]["train"] == 12.5 and "train" not in page["experiments"][0]["seconds"]
    values = [json.loads((folder / "evaluate/metrics.json").read_text())["cider_d"] for folder in (results, other)]
    assert page["pairs"][0]["differences"]["cider_d"]["value"] == pytest.approx(values[1] - values[0], abs=2e-6)


def test_the_command_refuses_what_is_no_experiment(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (results / "report/index.html").write_text("<html></html>")
    for name, message in (
        (str(results), "no report"),
        (str(tmp_path), "cannot be read"),
        ("nonsense", "in no git repository"),
    ):
        done = CliRunner().invoke(main, ["report", name])
        assert done.exit_code != 0 and message in str(done.output) + str(done.exception), name
    assert not (tmp_path / "report.html").exists()
