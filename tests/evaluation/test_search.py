"""What the parameters of the search do to an evaluation: diverse beam, sampling, a forced beginning, ensembles, a
reward for length."""

from __future__ import annotations

import csv
import json
import math
import shutil

import pytest
import torch
import yaml

from captioner.errors import CaptionerError
from captioner.evaluation import summary
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet
from captioner.model_io import load_model, save_model
from captioner.vocabulary.tokenizer import tokenize
from captioner.vocabulary.vocabulary import END, SPECIALS, START, Vocabulary
from tests.data import ROOT
from tests.evaluation import small

pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture
def found(paths, tmp_path):
    """Evaluates; gives the captions with their log-probabilities, ``{image id: (caption, log-probability)}``."""

    def run(**options):
        results = small.run(paths, tmp_path / f"{len(list(tmp_path.iterdir()))}", length_normalisation=0.0, **options)
        with open(results / "per_image.csv", newline="") as file:
            return {
                int(row["image_id"]): (row["caption"], float(row["log_probability"])) for row in csv.DictReader(file)
            }

    return run


def texts(captions) -> list[str]:
    return [caption for caption, _ in captions.values()]


def test_diverse(found):
    """Without a penalty every group of one is greedy; one group is beam search; a penalty finds other captions, never
    worse than greedy's, which the first group still finds."""
    greedy, beam = found(beam_sizes=[1]), found(beam_sizes=[4])
    assert texts(greedy) != texts(beam)
    assert texts(found(search="diverse", beam_sizes=[4], diversity_penalty=0)) == texts(greedy)
    assert texts(found(search="diverse", beam_sizes=[4], diversity_groups=1)) == texts(beam)
    apart = found(search="diverse", beam_sizes=[4], diversity_penalty=2)
    assert texts(apart) != texts(greedy) and texts(apart) != texts(beam)
    assert all(apart[image][1] >= greedy[image][1] - 1e-4 for image in greedy)
    assert texts(found(search="diverse", beam_sizes=[4], diversity_penalty=2, diversity_groups=2)) != texts(apart)


def test_groups_that_do_not_divide_a_beam(found):
    with pytest.raises(CaptionerError, match="evaluate.diversity_groups=2 does not divide 3 of evaluate.beam_sizes"):
        found(search="diverse", beam_sizes=[2, 3], diversity_groups=2)
    found(search="beam", beam_sizes=[2, 3], diversity_groups=2)


def test_sample(found):
    drawn = found(search="sample", beam_sizes=[2])
    assert texts(found(search="sample", beam_sizes=[2], batch_size=5)) == texts(drawn)
    greedy = found(beam_sizes=[1])
    assert texts(found(search="sample", beam_sizes=[2], seed=2)) != texts(drawn) != texts(greedy)
    for options in ({"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.01}):
        assert texts(found(search="sample", beam_sizes=[2], **options)) == texts(greedy), options
    for options in ({"top_k": 3}, {"top_p": 0.5}, {"temperature": 2.0}):
        assert texts(found(search="sample", beam_sizes=[2], **options)) != texts(drawn), options


def test_more_samples_begin_with_the_same_ones(found):
    """So the best of five is at least as likely as the best of two of them."""
    two, five = (found(search="sample", beam_sizes=[size]) for size in (2, 5))
    assert all(five[image][1] >= two[image][1] - 1e-4 for image in two) and texts(two) != texts(five)


def test_prefix(found):
    free, forced = found(), found(prefix="The red dog")
    assert not all(text.startswith("the red") for text in texts(free))
    assert all(text.startswith("the red dog") for text in texts(forced))
    with pytest.raises(
        CaptionerError, match="evaluate.prefix='a zebra': the word 'zebra' is not in the model's vocabulary"
    ):
        found(prefix="a zebra")
    with pytest.raises(CaptionerError, match="evaluate.prefix='the red dog': 3 words, but a caption may have 2"):
        found(prefix="the red dog", max_length=2)


def test_length_reward(found):
    fewer, usual, more = (
        sum(len(text.split()) for text in texts(found(beam_sizes=[4], length_reward=reward))) for reward in (-2, 0, 2)
    )
    assert fewer < usual < more


def other_model(paths, folder, words=small.WORDS, **facts):
    """Another model on the same features, of other weights."""
    vocabulary = Vocabulary([*SPECIALS, *words], facts={"max_length": 12})
    decoder = small.make_decoder(len(vocabulary))
    small.fill(decoder, seed=7, end=6.0)
    save_model(folder, decoder, vocabulary, {**small.model_facts(FeatureStore.open(paths["features"])), **facts})
    return str(folder)


def test_a_model_with_itself_says_the_same(found, paths, tmp_path):
    twin = str(shutil.copytree(paths["models"], tmp_path / "twin"))
    assert texts(found(beam_sizes=[3], ensemble=[twin])) == texts(found(beam_sizes=[3]))


def test_ensemble(paths, tmp_path):
    """Cross entropy and accuracy are those of the mean of three models' probabilities, word by word; the captions are
    new ones."""
    others = [other_model(paths, tmp_path / "other"), str(paths["models"])]
    results = small.run(paths, tmp_path / "results", ensemble=others)
    metrics, alone = (
        json.loads((folder / "metrics.json").read_text()) for folder in (results, small.run(paths, tmp_path / "alone"))
    )
    members = [load_model(folder).decoder for folder in (paths["models"], *others)]
    store, captions, vocabulary = (
        FeatureStore.open(paths["features"]),
        CaptionSet.load(paths["captions"]),
        load_model(paths["models"]).vocabulary,
    )
    total, correct, count = 0.0, 0, 0
    with store.reader("ram") as reader, torch.no_grad():
        for image in captions.image_ids("test"):
            memories = [member.encode(reader.read(store.rows([image]))) for member in members]
            for text in captions.captions(image):
                states, word = [member.initial_state(memory, 1) for member, memory in zip(members, memories)], START
                for target in [*vocabulary.encode(tokenize(text)), END]:
                    steps = [
                        m.step(torch.tensor([[word]]), state, memory)
                        for m, state, memory in zip(members, states, memories)
                    ]
                    mean = sum(logits[0, 0].softmax(-1) for logits, _, _ in steps) / 3
                    states, word = [state for _, state, _ in steps], target
                    total, correct, count = (
                        total - math.log(mean[target]),
                        correct + (int(mean.argmax()) == target),
                        count + 1,
                    )
    assert metrics["cross_entropy"] == pytest.approx(total / count, abs=1e-4)
    assert metrics["token_accuracy"] == pytest.approx(100 * correct / count, abs=1e-4)
    models = [json.loads((folder / "signature.json").read_text())["models"] for folder in (results, tmp_path / "alone")]
    assert models == [3, 1] and alone["cross_entropy"] != metrics["cross_entropy"]
    assert (results / "captions.json").read_text() != (tmp_path / "alone" / "captions.json").read_text()
    assert (results / "plots/examples.png").exists()


def test_models_that_do_not_fit_are_refused(paths, tmp_path):
    swapped = [small.WORDS[1], small.WORDS[0], *small.WORDS[2:]]
    cases = {
        "other_words": (
            other_model(paths, tmp_path / "other_words", swapped),
            "its word 4 is 'the', that of this vocabulary 'a'",
        ),
        "fewer_words": (
            other_model(paths, tmp_path / "fewer_words", small.WORDS[:-1]),
            "its vocabulary has 21 words, this one 22",
        ),
        "other_encoder": (
            other_model(paths, tmp_path / "other_encoder", encoder="alexnet"),
            "encoder is squeezenet1_1, not alexnet",
        ),
        "nothing": (str(tmp_path / "nothing"), "nothing/config.json: cannot be read"),
    }
    for name, (folder, words) in cases.items():
        with pytest.raises(CaptionerError) as error:
            small.run(paths, tmp_path / "results", ensemble=[folder])
        assert words in error.value.message and name in error.value.message
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("search", "title"), [("beam", "beam 2"), ("diverse", "diverse beam 2"), ("sample", "samples 2")]
)
def test_the_search_stands_in_signature_and_summary(paths, tmp_path, search, title):
    results = small.run(paths, tmp_path / "results", beam_sizes=[2], search=search)
    assert json.loads((results / "signature.json").read_text())["search"] == search
    assert f"images, {title}, chosen on validation" in summary(results, paths["captions"], small.REPORT)


def test_what_captions_are_like(paths, tmp_path):
    """The metrics of metrics.json are those of captions.json; each beam size has them in the table of the sweep."""
    results = small.run(paths, tmp_path / "results")
    metrics = json.loads((results / "metrics.json").read_text())
    words = [row["caption"].split() for row in json.loads((results / "captions.json").read_text())]
    every = [word for caption in words for word in caption]
    pairs = [pair for caption in words for pair in zip(caption, caption[1:])]
    expected = {
        "distinct_1": 100 * len(set(every)) / len(every),
        "distinct_2": 100 * len(set(pairs)) / len(pairs),
        "words_used": len(set(every)),
        "vocabulary_used": 100 * len(set(every)) / len(small.WORDS),
        "novel": 100.0,
        "caption_length": len(every) / len(words),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    with open(results / "plots/beam_sweep.csv", newline="") as file:
        rows = {int(row["beam_size"]): row for row in csv.DictReader(file)}
    assert set(rows) == {1, 3}
    assert {name: float(rows[metrics["beam_size"]][name]) for name in expected} == pytest.approx(expected, abs=1e-4)


def test_every_figure_is_plotted_against_beam_size(paths, tmp_path):
    """All columns of the sweep stand once in dvc.yaml's plots; METEOR, which needs Java, in one of its own."""
    results = small.run(paths, tmp_path / "results", beam_sizes=list(range(1, 10)))
    with open(results / "plots/beam_sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["beam_size"]) for row in rows] == list(range(1, 10))
    path, content = "results/evaluate/plots/beam_sweep.csv", yaml.safe_load((ROOT / "dvc.yaml").read_text())
    plotted = [settings["y"][path] for entry in content["plots"] for settings in entry.values()]
    # the chart that DVC draws of the file itself
    plotted += [[entry[path]["y"]] for entry in content["stages"]["evaluate"]["plots"] if path in entry]
    assert sorted(name for names in plotted for name in names) == sorted([*(set(rows[0]) - {"beam_size"}), "meteor"])
    assert ["meteor"] in plotted
