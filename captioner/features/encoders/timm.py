"""The timm family: ``timm/NAME`` for every model of timm with a map or a square grid of tokens.

NAME is timm's, with or without the tag of the weights: ``timm/convnext_atto``,
``timm/vit_base_patch16_clip_224.openai``, ``timm/vit_small_patch14_dinov2.lvd142m``. Mean, deviation, interpolation,
the part of the image that is seen (``crop_pct``) and the input's side are those of the model's ``pretrained_cfg``.

The map is ``forward_features`` of a CNN. Of a transformer it is the last of ``forward_intermediates``, after the final
norm; timm drops class and register tokens there by their count (``num_prefix_tokens``). ``extract.layer=last_stage``
takes the last of ``forward_intermediates`` without norm: of an EfficientNet 320 channels instead of 1,280.

timm is imported when it is first needed: the names of torchvision's encoders work without it.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner.errors import CaptionerError
from captioner.features.encoders.encoder import LAST_STAGE, Cut, Encoder, InputSpec, Published
from captioner.features.encoders.packages import LICENSE, package_state
from captioner.features.encoders.weights import content_sha256, load_weights, weights_name

PREFIX = "timm/"


def _timm() -> Any:
    # a torch for CPUs beside a torchvision for CUDA can import timm only after this
    importlib.import_module("captioner.features.encoders.torchvision_compat")
    return importlib.import_module("timm")


def names() -> list[str]:
    """Names of timm's models, each also with the tags of its weights, sorted."""
    timm = _timm()
    return sorted(PREFIX + name for name in {*timm.list_models(), *timm.list_pretrained()})


def owns(name: str) -> bool:
    """Whether a name is of this family."""
    return name.startswith(PREFIX)


def image_size(name: str) -> int:
    """The side that the model's weights were trained with."""
    return int(_config(name).input_size[-1])


def build(name: str, weights: str, seed: int, grid: int | str, image_size: int, layer: str) -> Encoder:
    """A model cut at the map that ``layer`` names, with its weights."""
    config, weights = _config(name), weights_name(name, weights)
    model = _model(name, config, weights == "pretrained", seed, image_size)
    spec = InputSpec(
        image_size, tuple(config.mean), tuple(config.std), config.interpolation, float(config.crop_pct or 1)
    )
    known = set(model.state_dict())
    if weights == "package":
        model.load_state_dict(package_state(name, model.state_dict()))
    convert = _converter(model)
    encoder = Encoder(name, _cut(name, model, image_size, config.input_size[-1], layer), grid, spec)
    license = {"pretrained": config.license, "package": LICENSE}.get(weights)
    if weights not in ("random", "pretrained", "package"):
        weights = load_weights(encoder.body, name, weights, known, convert)
    encoder.weights_name, encoder.weights_sha256 = weights, content_sha256(encoder.body)
    encoder.weights_license = license
    return encoder


def published(name: str) -> Published:
    """The weights in the cache of the Hugging Face hub, or of torch."""
    config = _config(name)
    _require_weights(name, config)
    if not config.hf_hub_id:
        return Published(config.url, Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name, config.license)
    found = importlib.import_module("huggingface_hub").try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    return Published(_source(config), Path(found) if isinstance(found, str) else None, config.license)


def _config(name: str) -> Any:
    """timm's ``PretrainedCfg`` of a model.

    Raises:
        CaptionerError: no such model; the nearest are named.
    """
    timm = _timm()
    own = name.removeprefix(PREFIX)
    try:
        config = timm.get_pretrained_cfg(own) if timm.is_model(own) else None
    except RuntimeError:  # the model is right, the tag is not
        config = None
    if config is None:
        near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.4)
        raise CaptionerError(
            f"encoder={name}: timm has no such model; "
            + (f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them")
        )
    return config


def _model(name: str, config: Any, pretrained: bool, seed: int, image_size: int) -> nn.Module:
    """The whole model in eval mode, with published or random (seeded) weights.

    Raises:
        CaptionerError: the weights cannot be fetched, there are none, or the model takes no images of this size.
    """
    options: dict[str, Any] = {}
    own_size = tuple(config.input_size[-2:]) == (image_size, image_size)
    if config.fixed_input_size and not own_size:
        options["img_size"] = image_size
    if pretrained:
        _require_weights(name, config)
    timm, own = _timm(), name.removeprefix(PREFIX)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            model = timm.create_model(own, pretrained=False, **options).eval()
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            if own_size:
                raise
            raise _wrong_size(name, image_size, config.input_size[-1]) from error
        _check_patches(name, model, image_size)
        if not pretrained:
            return model
        timm.models.set_pretrained_check_hash(True)
        try:
            return timm.create_model(own, pretrained=True, **options).eval()
        except Exception as error:  # of the network, the hub's client or a damaged file: of many libraries
            raise CaptionerError(
                f"extract.weights=pretrained: {name}'s weights could not be fetched from "
                f"{_source(config)} ({_reason(error)}); fetch model.safetensors there by hand and give its path as "
                "extract.weights, or use extract.weights=package (timm/tf_efficientnet_lite0 and 2)"
            ) from error


def _require_weights(name: str, config: Any) -> None:
    if not config.has_weights:
        raise CaptionerError(
            f"extract.weights=pretrained: timm publishes no weights of {name}; "
            "give the path of a weights file, or use another encoder"
        )


def _check_patches(name: str, model: nn.Module, image_size: int) -> None:
    """timm would leave out the last pixels of an image that is no whole number of patches."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = max(patch) if isinstance(patch, (tuple, list)) and patch else patch
    if isinstance(side, int) and image_size % side:
        near = max(side, round(image_size / side) * side)
        raise CaptionerError(
            f"encoder={name} takes no images of {image_size}x{image_size} pixels, its patches are {side}x{side}; "
            f"use extract.image_size={near}"
        )


def _wrong_size(name: str, image_size: int, own_size: int) -> CaptionerError:
    return CaptionerError(
        f"encoder={name} takes no images of {image_size}x{image_size} pixels; use extract.image_size={own_size}"
    )


def _source(config: Any) -> str:
    return f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what timm and the hub's client log; our messages say the same."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _converter(model: nn.Module) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """From the weights of an original file (other names, position embeddings of another size) to the model's.

    timm loads a file with ``pretrained_cfg_overlay=dict(file=...)``, but says nothing of weights that are missing where
    the head is another one. So the same conversion is called here, and ``load_weights`` checks the result.
    """

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        try:
            changed = change(dict(state), model) if change else state
        except Exception:  # weights of another model: ``load_weights`` names what is missing in them
            return state
        return changed if isinstance(changed, dict) else state

    return convert


def _cut(name: str, model: nn.Module, image_size: int, own_size: int, wanted: str) -> Cut:
    """Cut a model in eval mode at its final map, or at that of its last stage.

    Raises:
        CaptionerError: it has none, or takes no images of this size.
    """
    images = torch.zeros(1, 3, image_size, image_size)
    sizes: list[int] = []

    def note(_: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [tensor for tensor in (*inputs, output) if isinstance(tensor, Tensor)]
        sizes.append(sum(tensor.numel() for tensor in tensors))

    hooks = [module.register_forward_hook(note) for module in model.modules() if not list(module.children())]
    fault = "no spatial map"
    with torch.inference_mode():
        for layer, feature_map in _LAST_STAGE if wanted == LAST_STAGE else _FINAL:
            try:
                found = feature_map(model, images)
            except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
                fault = _reason(error)
                continue
            if _is_map(model, layer, found):
                break
        else:
            if image_size != own_size:
                raise _wrong_size(name, image_size, own_size)
            raise CaptionerError(
                f"encoder={name}: this model gives no spatial map and no square grid of tokens ({fault}); "
                "use another encoder"
            )
    for hook in hooks:
        hook.remove()
    _drop_head(model)
    if wanted == LAST_STAGE:
        model.prune_intermediate_layers(1, prune_norm=True)  # type: ignore[operator]
    activations = int(max(sizes) * (224 / image_size) ** 2)
    return Cut(model.eval(), layer, feature_map, activations)


def _drop_head(model: nn.Module) -> None:
    """Without classifier and, where the model allows it, without pooling: features need neither."""
    try:
        model.reset_classifier(0, "")  # type: ignore[operator]  # of every model of timm
    except AssertionError:
        model.reset_classifier(0)  # type: ignore[operator]


def _is_map(model: nn.Module, layer: str, found: Any) -> bool:
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[2] * found.shape[3] <= 1:
        return False
    # channels come last in Swin and others; their maps come from forward_intermediates
    in_order = getattr(model, "output_fmt", "NCHW") == "NCHW" and found.shape[1] == model.num_features
    return found.shape[2] == found.shape[3] and (layer != "forward_features" or in_order)


def _features(model: nn.Module, images: Tensor) -> Tensor:
    return model.forward_features(images)  # type: ignore[operator]


def _intermediate(model: nn.Module, images: Tensor, norm: bool = True) -> Tensor:
    maps = model.forward_intermediates(  # type: ignore[operator]
        images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True
    )
    return maps[-1]


def _intermediate_without_norm(model: nn.Module, images: Tensor) -> Tensor:
    """Of models whose last norm does not fit their maps (Hiera)."""
    return _intermediate(model, images, norm=False)


_FINAL: tuple[tuple[str, Callable[[nn.Module, Tensor], Tensor]], ...] = (
    ("forward_features", _features),
    ("forward_intermediates, norm", _intermediate),
    ("forward_intermediates", _intermediate_without_norm),
)
_LAST_STAGE = ((LAST_STAGE, _intermediate_without_norm),)
