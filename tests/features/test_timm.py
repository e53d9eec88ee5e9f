"""One small model of each family of timm, with random weights: map, grid, determinism, range, extraction, captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captioner.errors import CaptionerError
from captioner.features.encoders import build_encoder, default_image_size, known_encoders
from captioner.features.encoders.timm import _cut
from captioner.features.encoders.torchvision_compat import torchvision  # noqa: F401  before timm
from captioner.features.extract import extract
from captioner.features.forward import ImageEncoder
from captioner.features.layout import MEAN, STD
from captioner.features.preprocess import Preprocessing, square, visible_box
from captioner.features.store import FeatureStore
from captioner.features.verify import verify_features
from captioner.images.store import ImageStore
from tests.features.conftest import make_images_file, quick, runtime

HALF, CLIP_MEAN = (0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)
# name: (channels, rows = columns of the map, input side, mean, crop_pct) of the papers and timm's model cards
FAMILIES: dict[str, tuple[int, int, int, tuple, float]] = {
    "convnext_atto": (320, 7, 224, MEAN, 0.875),
    "efficientnet_b0": (1280, 7, 224, MEAN, 0.875),
    "tf_efficientnet_lite0": (1280, 7, 224, HALF, 0.875),
    "regnety_002": (368, 7, 224, MEAN, 0.875),
    "mobilenetv4_conv_small": (960, 7, 224, MEAN, 0.875),
    "vit_tiny_patch16_224": (192, 14, 224, HALF, 0.9),
    "deit_tiny_distilled_patch16_224": (192, 14, 224, MEAN, 0.9),  # two prefix tokens
    "swin_tiny_patch4_window7_224": (768, 7, 224, MEAN, 0.9),
    "vit_small_patch14_dinov2": (384, 37, 518, MEAN, 1.0),
    "vit_small_patch14_reg4_dinov2": (384, 37, 518, MEAN, 1.0),  # five prefix tokens
    "vit_base_patch32_clip_224": (768, 7, 224, CLIP_MEAN, 0.9),
    "resnet50_clip": (2048, 7, 224, CLIP_MEAN, 0.9),
    "vit_base_patch16_siglip_224": (768, 14, 224, HALF, 0.9),  # none
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family(name: str, tmp_path: Path) -> None:
    channels, side, image_size, mean, crop_pct = FAMILIES[name]
    name = f"timm/{name}"
    assert default_image_size(name) == image_size
    encoder = build_encoder(name)
    spec = encoder.spec
    assert (encoder.channels, encoder.map, encoder.grid) == (channels, (side, side), (side, side))
    assert (spec.image_size, spec.mean, spec.crop_pct) == (image_size, mean, pytest.approx(crop_pct))
    assert encoder.weights_name == "random" and encoder.weights_license is None
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    assert build_encoder(name, image_size=image_size).weights_sha256 == encoder.weights_sha256

    images, out = make_images_file(tmp_path / "images.h5", 4), tmp_path / "timm" / "x.h5"
    stored = ImageStore.open(images)
    extract(quick(image_size=None, grid=3, batch_size=4), runtime(), name, images, out)
    store = FeatureStore.open(out)
    assert store.shape == (4, 1, 9, channels) and store.encoder == name and verify_features(out) == []
    facts = {"fit": "squash", "image_size": image_size, "mean": list(mean), "std": list(spec.std)}
    cropped = {} if crop_pct == 1 else {"crop_pct": pytest.approx(crop_pct)}
    assert store.preprocessing == {**facts, "resample": spec.resample, **cropped}
    features = store.reader().read([0, 1, 2, 3])
    assert torch.isfinite(features).all() and features.abs().max() < 1000  # far from float16's 65504
    assert features.float().std() > 0

    # as captioner caption does it: the same four images, the preprocessing that the file states
    seen = store.preprocessing
    plan = Preprocessing(seen["fit"], seen["image_size"], resample=seen["resample"], crop_pct=seen.get("crop_pct", 1.0))
    pixels = np.stack([square(stored.image(row), plan) for row in range(4)])
    again = ImageEncoder(build_encoder(name, grid=3), torch.device("cpu"), "fp32")
    torch.set_num_threads(1)
    assert torch.equal(again(pixels), features)


def test_tokens_lie_on_the_grid_row_by_row_without_their_prefix() -> None:
    """Before its blocks, a token of a vision transformer depends on its own patch alone."""
    encoder = build_encoder("timm/vit_small_patch14_reg4_dinov2", image_size=56)
    encoder.body.blocks = torch.nn.Sequential(torch.nn.Identity())
    images = torch.zeros(1, 3, 56, 56)
    with torch.inference_mode():
        empty = encoder.feature_map(images)
        images[..., 14:28, 42:56] = 1.0  # row 1, column 3
        changed = (encoder.feature_map(images) - empty).abs().amax(1)[0] > 1e-4
    assert encoder.grid == (4, 4) and changed.nonzero().tolist() == [[1, 3]]


def test_names_are_checked() -> None:
    for wrong, near in (
        ("timm/convnext_ato", "timm/convnext_atto"),
        ("timm/vit_base_patch16_clip_224.openaj", "timm/vit_base_patch16_clip_224.openai"),
        ("timm/ResNet50_CLIP.openai", "timm/resnet50_clip.openai"),
    ):
        with pytest.raises(CaptionerError, match=f"timm has no such model; did you mean .*{near}"):
            build_encoder(wrong)
    names = known_encoders()
    assert {"squeezenet1_1", "timm/vit_small_patch14_dinov2.lvd142m", "timm/resnet50_clip.openai"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_model_without_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    class Vectors(torch.nn.Module):
        num_features = 8

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :8]

    with pytest.raises(CaptionerError, match="encoder=timm/vectors: this model gives no spatial map.*another encoder"):
        _cut("timm/vectors", Vectors(), 32, 32, "final")


@pytest.mark.parametrize(
    ("name", "size", "remedy"),
    [
        ("timm/vit_small_patch14_dinov2", 200, "its patches are 14x14; use extract.image_size=196"),
        ("timm/swin_tiny_patch4_window7_224", 225, "use extract.image_size=224"),
        ("timm/crossvit_9_240", 224, "use extract.image_size=240"),
        ("timm/maxvit_tiny_tf_224", 200, "use extract.image_size=224"),
    ],
)
def test_image_sizes_that_are_refused(name: str, size: int, remedy: str) -> None:
    with pytest.raises(CaptionerError, match=f"takes no images of {size}x{size} pixels.*{remedy}") as caught:
        build_encoder(name, image_size=size)
    assert "\n" not in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "crossvit_9_240",
        "efficientvit_b0",
        "hiera_tiny_224",
        "maxvit_tiny_tf_224",
        "twins_svt_small",
        "volo_d1_224",
    ],
)
def test_less_usual_models(name: str) -> None:
    """Several outputs, a head that always pools, a norm that does not fit the map, channels last."""
    encoder = build_encoder(f"timm/{name}")
    assert encoder.map[0] == encoder.map[1] >= 7 and encoder.channels >= 96


def test_image_sizes_that_are_taken() -> None:
    assert build_encoder("timm/vit_small_patch14_dinov2", image_size=224).grid == (16, 16)
    assert build_encoder("timm/convnext_atto", image_size=320).grid == (10, 10)
    assert build_encoder("timm/vit_tiny_patch16_224", image_size=64).spec.image_size == 64


def test_pretrained_without_a_network(monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("Name or service not known\nat all")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    message = "extract.weights=pretrained: timm/.*could not be fetched from https://huggingface.co/timm/.*give its path"
    for weights in ("pretrained", "imagenet"):
        with pytest.raises(CaptionerError, match=message) as caught:
            extract(quick(weights=weights), runtime(), "timm/convnext_atto.d2_in1k", images, tmp_path / "x.h5")
        assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_pretrained_states_its_licence(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    torch.manual_seed(3)
    model = timm.create_model("convnext_atto")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(model.state_dict()))
    out, name = tmp_path / "x.h5", "timm/convnext_atto.d2_in1k"
    extract(quick(weights="pretrained"), runtime(), name, images, out)
    store = FeatureStore.open(out)
    assert (store.weights_name, store.weights_license) == ("pretrained", "apache-2.0")
    assert f"{name}: licence of its pretrained weights: apache-2.0" in capsys.readouterr().err
    mit = build_encoder("timm/resnet50_clip.openai")
    assert mit.weights_license is None  # random weights are nobody's


def test_files_of_weights(tmp_path: Path) -> None:
    """Of the whole model, of another head, of the body alone, and of another number of positions."""
    import timm

    torch.manual_seed(5)
    model = timm.create_model("vit_tiny_patch16_224").state_dict()
    (tmp_path / "folder").mkdir()
    torch.save(model, tmp_path / "whole.pth")
    other_head = {**model, "head.weight": torch.zeros(7, 192), "head.bias": torch.zeros(7)}
    torch.save({"state_dict": other_head}, tmp_path / "head.pth")
    body = {name: tensor for name, tensor in model.items() if not name.startswith("head.")}
    save_file(body, tmp_path / "folder" / "vit_tiny_patch16_224.safetensors")
    hashes = set()
    for weights in ("whole.pth", "head.pth", "folder"):
        encoder = build_encoder("timm/vit_tiny_patch16_224", str(tmp_path / weights))
        assert encoder.weights_name == "file" and encoder.weights_license is None
        hashes.add(encoder.weights_sha256)
    save_file(encoder.body.state_dict(), tmp_path / "encoder.safetensors")  # as models/ keeps it
    hashes.add(build_encoder("timm/vit_tiny_patch16_224", str(tmp_path / "encoder.safetensors")).weights_sha256)
    assert len(hashes) == 1
    larger = build_encoder("timm/vit_tiny_patch16_224", str(tmp_path / "whole.pth"), image_size=320)
    assert larger.grid == (20, 20)  # timm's resampling of the position embedding
    assert torch.equal(larger.body.blocks[3].mlp.fc1.weight, model["blocks.3.mlp.fc1.weight"])
    with pytest.raises(CaptionerError, match=r"whole.pth: these are no weights of timm/convnext_atto: \d+ missing"):
        build_encoder("timm/convnext_atto", str(tmp_path / "whole.pth"))


def test_weights_in_their_original_form(tmp_path: Path) -> None:
    """DINOv2's own files have a mask token, which timm's model has not."""
    import timm

    state = timm.create_model("vit_small_patch14_dinov2", img_size=56).state_dict()
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth")
    encoder = build_encoder("timm/vit_small_patch14_dinov2", str(tmp_path / "dinov2.pth"), image_size=56)
    assert torch.equal(encoder.body.cls_token, state["cls_token"])


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"stem.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CaptionerError, match="evil.pth"):
        build_encoder("timm/convnext_atto", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_the_central_part_is_timms() -> None:
    """timm resizes to side / crop_pct and crops the centre; one resize of the central box gives nearly the same."""
    import timm

    pixels = np.asarray(Image.linear_gradient("L").resize((320, 240)).convert("RGB"))
    image = Image.fromarray(pixels)
    transform = timm.data.create_transform((3, 224, 224), interpolation="bicubic", crop_pct=0.875, mean=MEAN, std=STD)
    expected = transform(image) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    plan = Preprocessing("crop", 224, resample="bicubic", crop_pct=0.875)
    ours = torch.from_numpy(square(image, plan).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.01)
    assert visible_box(320, 240, "crop", 0.875) == (55, 15, 265, 225)
    assert visible_box(320, 240, "squash", 0.875) == (20, 15, 300, 225)


def test_last_stage_leaves_out_the_convolution_that_widens(tmp_path: Path) -> None:
    """EfficientNet (Tan and Le 2019, table 1): its last stage has 320 channels, the convolution after it 1,280."""
    name = "timm/tf_efficientnet_lite0"
    final, stage = build_encoder(name, seed=3), build_encoder(name, seed=3, layer="last_stage")
    assert (final.channels, stage.channels, stage.map) == (1280, 320, (7, 7))
    # 320 * 1280 weights of the convolution and 2 * 1280 of its norm
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (final, stage)]
    assert count[0] - count[1] == 320 * 1280 + 2 * 1280
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        head = final.body.bn2(final.body.conv_head(stage.feature_map(images)))
        torch.testing.assert_close(head, final.feature_map(images))

    images_file, out = make_images_file(tmp_path / "images.h5", 4), tmp_path / "x.h5"
    extract(quick(image_size=None, grid=3, batch_size=4, layer="last_stage"), runtime(), name, images_file, out)
    store = FeatureStore.open(out)
    assert store.shape == (4, 1, 9, 320) and store.layer == "last_stage"
    with pytest.raises(CaptionerError, match="extract.layer=last_stage: squeezenet1_1 .* use extract.layer=final"):
        build_encoder("squeezenet1_1", layer="last_stage")


def test_crop_pct_overrides_the_encoders_own(tmp_path: Path) -> None:
    images, all_of_it, own = make_images_file(tmp_path / "images.h5", 4), tmp_path / "1.h5", tmp_path / "2.h5"
    options = {"image_size": 64, "batch_size": 4}
    extract(quick(**options, crop_pct=1.0), runtime(), "timm/efficientnet_b0", images, all_of_it)
    extract(quick(**options), runtime(), "timm/efficientnet_b0", images, own)
    stores = [FeatureStore.open(path) for path in (all_of_it, own)]
    assert [store.preprocessing.get("crop_pct") for store in stores] == [None, 0.875]
    stored = ImageStore.open(images)
    plan = Preprocessing("squash", 64, resample="bicubic")  # sees all
    again = ImageEncoder(build_encoder("timm/efficientnet_b0", image_size=64), torch.device("cpu"), "fp32")
    torch.set_num_threads(1)
    pixels = np.stack([square(stored.image(row), plan) for row in range(4)])
    rows = [store.reader().read([0, 1, 2, 3]) for store in stores]
    assert torch.equal(again(pixels), rows[0]) and not torch.equal(rows[0], rows[1])
