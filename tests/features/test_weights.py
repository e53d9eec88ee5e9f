"""Where an encoder's weights come from, and what is said when they do not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from captioner.errors import CaptionerError
from captioner.features.encoders import build_encoder
from captioner.features.encoders.torchvision import build_classifier
from captioner.features.encoders.weights import content_sha256
from tests.data import real_data

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return build_classifier(NAME, "random", 7).state_dict()


def test_formats_and_wrappings_give_the_same_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    torch.save(state, tmp_path / "plain.pth")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "wrapped.pt"
    )
    save_file(
        {key: value for key, value in state.items() if key.startswith("features.")},
        tmp_path / "folder" / f"{NAME}.safetensors",
    )
    expected = build_encoder(NAME, seed=7).weights_sha256
    for weights in (tmp_path / "plain.pth", tmp_path / "wrapped.pt", tmp_path / "folder"):
        encoder = build_encoder(NAME, str(weights))
        assert encoder.weights_sha256 == expected and encoder.weights_name == "file"


def test_half_precision_and_another_head_are_fine(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {key: value.half() for key, value in state.items()}
    half["classifier.1.weight"], half["classifier.1.bias"] = torch.zeros(10, 512, 1, 1), torch.zeros(10)
    torch.save(half, tmp_path / "half.pth")
    encoder = build_encoder(NAME, str(tmp_path / "half.pth"))
    parameter = encoder.body.get_parameter("features.0.weight")
    assert parameter.dtype == torch.float32 and torch.equal(parameter, half["features.0.weight"].float())


def test_hash_is_of_names_shapes_and_values() -> None:
    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
        module.bias.fill_(0.5)
    text = (
        b"bias(1,)" + bytes.fromhex("0000003f") + b"weight(1, 2)" + bytes.fromhex("0000803f000000c0")
    )  # little-endian IEEE 754
    assert content_sha256(module) == hashlib.sha256(text).hexdigest() == content_sha256(module.half())


def test_weights_of_another_encoder_are_refused_in_one_line(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        CaptionerError, match=r"w.pth: these are no weights of resnet18: \d+ missing \(bn1.bias, .*unknown"
    ) as caught:
        build_encoder("resnet18", str(tmp_path / "w.pth"))
    assert "\n" not in caught.value.message
    with pytest.raises(CaptionerError, match="of another shape"):
        build_encoder("squeezenet1_0", str(tmp_path / "w.pth"))
    deeper = build_classifier(
        "resnet34", "random", 1
    ).state_dict()  # holds every name of a resnet18 with the same shapes
    torch.save(deeper, tmp_path / "deeper.pth")
    with pytest.raises(CaptionerError, match="unknown"):
        build_encoder("resnet18", str(tmp_path / "deeper.pth"))


def test_older_densenet_files_have_other_names(tmp_path: Path) -> None:
    state = build_classifier("densenet121", "random", 4).state_dict()
    old = {}
    for name, tensor in state.items():
        for part in ("norm1", "conv1", "norm2", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save({key: value for key, value in old.items() if "num_batches_tracked" not in key}, tmp_path / "old.pth")
    assert (
        build_encoder("densenet121", str(tmp_path / "old.pth")).weights_sha256
        == build_encoder("densenet121", seed=4).weights_sha256
    )


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "text.safetensors", "empty.pth", "list.pth"):
        with pytest.raises(CaptionerError, match=name):
            build_encoder(NAME, str(tmp_path / name))
    with pytest.raises(CaptionerError, match="no such file"):
        build_encoder(NAME, str(tmp_path / "absent.pth"))
    with pytest.raises(CaptionerError, match=f"no {NAME}.pth"):
        build_encoder(NAME, str(tmp_path))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CaptionerError, match="evil.pth"):
        build_encoder(NAME, str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_bundled_weights_are_of_one_encoder() -> None:
    with pytest.raises(CaptionerError, match="extract.weights=pretrained.*encoder=squeezenet1_1"):
        build_encoder("resnet18", "bundled")


def test_imagenet_without_network_or_with_a_wrong_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        CaptionerError,
        match="extract.weights=pretrained: squeezenet1_1's weights could not be fetched from https.*give its path",
    ):
        build_encoder(NAME, "imagenet")


def test_imagenet_asks_for_the_first_recipe_with_its_hash(
    state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def deliver(url: str, **options: object) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return build_classifier("resnet18" if "resnet18" in url else NAME, "random", 7).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", deliver)
    encoder = build_encoder(NAME, "imagenet")
    assert asked["check_hash"] and asked["url"].endswith("squeezenet1_1-b8a52dc0.pth")
    assert encoder.weights_name == "imagenet" and encoder.weights_sha256 == build_encoder(NAME, seed=7).weights_sha256


def test_real_imagenet_weights_load() -> None:
    folder = real_data("weights")
    encoders = {name: build_encoder(name, str(folder)) for name in ("squeezenet1_0", "squeezenet1_1")}
    for encoder in encoders.values():
        assert encoder.weights_name == "file" and encoder.grid == (13, 13)
