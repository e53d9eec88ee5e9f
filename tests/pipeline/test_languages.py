"""The tables of docs/languages through every stage, and the captions that come out."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from captioner import paths
from captioner.cli import main
from captioner.evaluation import evaluate, summary
from captioner.features.extract import extract
from captioner.images.download import download
from captioner.parameters import Parameters, parse_parameters
from captioner.report import read_page
from captioner.training import train
from captioner.vocabulary.build import build
from captioner.vocabulary.tokenizers import TOKENIZERS
from tests.data import ROOT

PAGE = (ROOT / "docs/languages.md").read_text()
TOKENIZER = {"chinese": "characters", "german": "words"}


def parameters(language: str) -> Parameters:
    """Of the page's command, the encoder and the training smaller."""
    [command] = [line for line in PAGE.splitlines() if line.startswith("dvc exp run") and f"{language}.csv" in line]
    content: dict = {}
    for name, value in re.findall(r"-S '?\+*([\w.]+)=([^\s']+)", command):
        section, _, key = name.rpartition(".")
        (content.setdefault(section, {}) if section else content)[key] = yaml.safe_load(value)
    assert content["vocab"]["tokenizer"] == TOKENIZER[language]
    content["download"] |= {name: str(ROOT / content["download"][name]) for name in ("root", "captions")}
    content |= {"encoder": "squeezenet1_1", "runtime": {"device": "cpu", "workers": 1, "threads": 1}}
    content["extract"] = {"weights": "random", "grid": 3}
    content["train"] |= {"epochs": 2, "hidden_size": 16, "feature_size": 16}
    content["evaluate"] = {"beam_sizes": [2], "min_length": 3}
    return parse_parameters(content)


@pytest.fixture(scope="module", params=TOKENIZER)
def finished(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Language, and a folder in which every stage has run."""
    folder, chosen = tmp_path_factory.mktemp(request.param), parameters(request.param)
    data = folder / "data"
    features = data / "f.h5"
    download(chosen.download, chosen.runtime, "custom", data, ROOT / paths.SOURCES)
    extract(chosen.extract, chosen.runtime, chosen.encoder, data / "images.h5", features)
    build(chosen.vocab, chosen.runtime, data / "captions.json", data / "vocab.json", data / "e.npy")
    made = {"features": features, "captions": data / "captions.json"}
    train(
        chosen,
        **made,
        vocab=data / "vocab.json",
        embeddings=data / "e.npy",
        models=folder / "models",
        results=folder / "train",
    )
    evaluate(
        chosen,
        **made,
        models=folder / "models",
        images=data / "images.h5",
        results=folder / "evaluate",
        report=folder / "page.html",
    )
    return request.param, folder


def test_scores(finished: tuple[str, Path]) -> None:
    language, folder = finished
    found = json.loads((folder / "evaluate/metrics.json").read_text())
    signature = json.loads((folder / "evaluate/signature.json").read_text())
    assert signature["tokenizer"].startswith(f"{TOKENIZER[language]} (")
    assert "meteor" not in found and signature["meteor"] == "absent: it knows English only"
    assert "(no METEOR: it knows English only)" in summary(folder / "evaluate", folder / "data/captions.json", folder)
    files = [str(folder / "data/captions.json"), str(folder / "evaluate/captions.json")]
    command = CliRunner().invoke(main, ["score", *files, "--json", "--tokenizer", TOKENIZER[language]])
    again = json.loads(command.stdout)
    for name in ("bleu_1", "rouge_l", "cider_d"):
        assert again[name] == pytest.approx(found[name], abs=1e-4)


def test_captions_are_written_as_the_language_is(finished: tuple[str, Path]) -> None:
    language, folder = finished
    captions = [row["caption"] for row in json.loads((folder / "evaluate/captions.json").read_text())]
    with open(folder / "evaluate/per_image.csv", newline="") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == captions
    page = read_page((folder / "page.html").read_text(), "page")
    assert page["experiments"][0]["warnings"][-1] == "METEOR is absent: it knows English only."
    shown = page["experiments"][0]["captions"]
    assert sorted(caption["text"] for caption in shown) == sorted(captions)
    image = str(ROOT / "samples/cat.jpg")
    command = ["caption", image, "--model", str(folder / "models"), "--json", "--attention", str(folder / "attention")]
    said = json.loads(CliRunner().invoke(main, command).stdout)
    assert (folder / "attention/cat.attention.png").stat().st_size > 1000
    texts = [*captions, *(caption["caption"] for caption in (said[0] if isinstance(said, list) else said)["captions"])]
    assert any(len(text) > 2 for text in texts)
    for text in texts:
        assert (" " in text) == (language == "german" and len(text.split()) > 1)
    tokenizer = TOKENIZERS[TOKENIZER[language]]
    for caption in shown:
        assert caption["words"] == tokenizer.tokenize(caption["text"]) and len(caption["words"]) >= 3
        assert caption["attention"] is not None


def test_the_page_shows_what_the_stages_say() -> None:
    """Its examples of tokens are those of the code."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| `([^`]+)` \|", PAGE, re.M)
    assert len(rows) >= 4
    for name, caption, tokens in rows:
        assert TOKENIZERS[name].tokenize(caption) == tokens.split(), (name, caption)
