"""The cut of torchvision's classifiers, checked against the whole classifiers and their known shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captioner.errors import CaptionerError
from captioner.features.encoders import Encoder, build_encoder, check_grid, torchvision
from captioner.features.encoders.folding import fold_batch_norms
from captioner.features.encoders.torchvision import build_classifier, cut
from captioner.features.extract import _threads
from captioner.parameters import ExtractParameters


def _pooled(head: str) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, map: getattr(model, head)(torch.flatten(model.avgpool(map), 1))


def _mean(head: str) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, map: getattr(model, head)(map.mean((2, 3)))


# name: (channels, rows = columns, the classifier's own head on its map as the papers and torchvision's documentation
# have it)
CLASSIFIERS: dict[str, tuple[int, int, Callable[[nn.Module, Tensor], Tensor] | None]] = {
    "resnet152": (2048, 7, _mean("fc")),
    "alexnet": (256, 6, _pooled("classifier")),
    "vgg19": (512, 7, _pooled("classifier")),
    "vgg19_bn": (512, 7, _pooled("classifier")),
    "densenet201": (1920, 7, _mean("classifier")),
    "squeezenet1_0": (512, 13, lambda model, map: model.classifier(map).flatten(1)),
    "squeezenet1_1": (512, 13, lambda model, map: model.classifier(map).flatten(1)),
    "resnet18": (512, 7, _mean("fc")),
    "resnet50": (2048, 7, _mean("fc")),
    "resnet101": (2048, 7, _mean("fc")),
    "mobilenet_v3_large": (960, 7, _mean("classifier")),
    "efficientnet_b0": (1280, 7, _mean("classifier")),
    "convnext_tiny": (768, 7, lambda model, map: model.classifier(map.mean((2, 3), keepdim=True))),
    "regnet_y_400mf": (440, 7, _mean("fc")),
    "vit_b_16": (768, 14, None),
    "swin_t": (768, 7, _mean("head")),
}


@pytest.fixture
def cheap_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights copied from one small table: drawing the 144 million of a VGG19, twice, would take longer than all else
    here."""
    table = torch.randn(65_521, generator=torch.Generator().manual_seed(0))

    def fill(tensor: Tensor, *_: object, **__: object) -> Tensor:
        fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 100
        with torch.no_grad():
            flat, scaled = tensor.view(-1), table * (2 / fan_in) ** 0.5
            whole = len(flat) // len(table)
            flat[: whole * len(table)].view(whole, len(table)).copy_(scaled)
            flat[whole * len(table) :].copy_(scaled[: len(flat) - whole * len(table)])
        return tensor

    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "trunc_normal_", "xavier_uniform_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, fill)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_cut_and_head_make_the_classifier(name: str, cheap_weights: None) -> None:
    channels, side, head = CLASSIFIERS[name]
    model = build_classifier(name, "random", 1)
    encoder = Encoder(name, cut(model), "native")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        features = encoder(images)  # (1, P, C)
        assert features.shape == (1, side * side, channels)
        map = features.transpose(1, 2).unflatten(2, (side, side))
        if head is not None:
            logits = model(images)
            torch.testing.assert_close(head(model, map), logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))
            assert logits.std() > 0  # features and head both take part
        else:  # the head of a vision transformer looks at the class token alone; the grid is all the other tokens
            patches = torch.cat([model.class_token, model._process_input(images)], dim=1)
            torch.testing.assert_close(features, model.encoder(patches)[:, 1:], rtol=1e-4, atol=1e-5)
        fold_batch_norms(encoder)
        torch.testing.assert_close(encoder(images), features, rtol=1e-3, atol=1e-4 * float(features.abs().max()))
    left = [type(module).__name__ for module in encoder.modules()].count("BatchNorm2d")
    assert left == {"densenet201": 102}.get(
        name, 0
    )  # DenseNet normalises before its convolutions, only half of them after another one
    assert not any(parameter.requires_grad for parameter in encoder.parameters()) and not encoder.training


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.names())
def test_every_classifier_has_a_map(name: str) -> None:
    if name in ("vit_h_14", "regnet_y_128gf"):
        pytest.skip("needs more memory than a test may take")
    encoder = build_encoder(name)
    assert encoder.grid[0] == encoder.grid[1] >= 5 and encoder.channels >= 256


def test_names_are_checked() -> None:
    with pytest.raises(CaptionerError, match="did you mean resnet152"):
        build_encoder("ResNet-152")
    with pytest.raises(CaptionerError, match="squeezenet1_1"):
        build_encoder("squeezenet11")


@pytest.mark.parametrize("grid", [0, -1, True, 7.0, "seven", "7"])
def test_grid_is_checked(grid: object) -> None:
    with pytest.raises(CaptionerError, match="extract.grid"):
        check_grid(grid)


def test_pooling_is_adaptive_and_never_enlarges() -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        own = build_encoder("squeezenet1_1", seed=5)(images).transpose(1, 2).unflatten(2, (13, 13))
        encoder = build_encoder("squeezenet1_1", seed=5, grid=7)
        pooled = encoder(images).transpose(1, 2).unflatten(2, (7, 7))
    assert encoder.grid == (7, 7) and encoder.map == (13, 13)
    for row, column in (
        (0, 0),
        (3, 4),
        (6, 6),
    ):  # cell i of 7 covers the 13 rows from floor(13 i / 7) to ceil(13 (i + 1) / 7)
        rows, columns = (slice(13 * i // 7, -(-13 * (i + 1) // 7)) for i in (row, column))
        torch.testing.assert_close(pooled[:, :, row, column], own[:, :, rows, columns].mean((2, 3)))
    assert build_encoder("alexnet", grid=7).grid == (6, 6)
    assert build_encoder("alexnet", grid=3).grid == (3, 3)


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = (build_encoder("squeezenet1_1", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    assert first.weights_name == "random"


def test_deep_random_encoder_stays_within_float16() -> None:
    """Identity normalisations and 33 blocks that each double the variance would make 2^(33/2) of an input of size 1,
    beyond 65504."""
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    encoder = build_encoder("resnet101", grid=7, image_size=64)
    with torch.inference_mode():
        features = encoder(images)
    assert 0.1 < float(features.std()) < float(features.max()) < 1000
    gammas = {
        name: float(tensor[0]) for name, tensor in encoder.body.state_dict().items() if name.endswith("bn3.weight")
    }
    assert len(gammas) == 33 and all(gamma == pytest.approx(33**-0.5) for gamma in gammas.values())
    untouched = build_classifier("resnet50", "random", 1).state_dict()
    assert all(bool((tensor == 1).all()) for name, tensor in untouched.items() if name.endswith("bn3.weight"))


def test_image_size() -> None:
    assert build_encoder("squeezenet1_1", image_size=128).grid == (7, 7)
    with pytest.raises(CaptionerError, match="takes no images of 200x200"):
        build_encoder("vit_b_32", image_size=200)


def test_activations_bound_the_threads() -> None:
    encoder = build_encoder("squeezenet1_1")
    assert encoder.activations >= 64 * 111 * 111 + 3 * 224 * 224  # its first convolution: output and input
    parameters = ExtractParameters(batch_size=32)
    assert _threads(2, encoder, parameters) == 2
    encoder.activations = 10**12
    assert _threads(64, encoder, parameters) == 1
