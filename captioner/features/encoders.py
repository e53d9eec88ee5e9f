"""Any torchvision classifier, cut at its last spatial map, as a frozen encoder of pictures.

One rule for all of them, no list of names: the model is traced, and of everything that it computes before its
classification head the last thing that has places is its feature map, either ``(B, C, H, W)`` with more than one place,
or the tokens ``(B, T, D)`` of a transformer, where T is a square number, plus one if there is a class token (which is
dropped).
"""

from __future__ import annotations

import difflib
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from captioner.errors import CaptionerError
from captioner.features.torchvision_compat import torchvision
from captioner.features.weights import content_sha256, load_weights

_PROBE_SIZE = 224  # every torchvision classifier takes 224x224 pictures, some take nothing else


class Cut(NamedTuple):
    """A classifier cut at its last map."""

    body: fx.GraphModule  # computes the map; its parameters keep the names they had in the classifier
    layer: str  # the module of the classifier, or the operation in one of its modules, whose output is the map
    tokens: bool  # whether the map is a sequence of tokens
    activations: int  # numbers held at once for one picture of 224x224, roughly


class Encoder(nn.Module):
    """A frozen encoder in eval mode.

    Attributes:
        name: torchvision's name of the classifier.
        layer, activations: as in ``Cut``.
        channels: C.
        map: ``(rows, columns)`` of the encoder's own feature map.
        grid: ``(rows, columns)`` of what ``forward`` returns, P = rows * columns.
        weights_name: bundled, imagenet, random or file.
        weights_sha256: SHA-256 (hex) of the encoder's weights as float32, whatever file they came from.
    """

    def __init__(self, name: str, cut: Cut, pool: int | str) -> None:
        super().__init__()
        self.name, self.body, self.layer, self.activations = name, cut.body, cut.layer, cut.activations
        self._tokens, self._pool = cut.tokens, pool
        self.channels = 0
        self.map = self.grid = (0, 0)
        self.weights_name = self.weights_sha256 = ""
        self.eval().requires_grad_(False)

    def feature_map(self, pictures: Tensor) -> Tensor:
        """Normalised pictures ``(B, 3, S, S)`` -> the encoder's own map ``(B, C, H, W)``."""
        features = self.body(pictures)
        if self._tokens:  # (B, T, D)
            side = math.isqrt(features.shape[1])
            features = features[
                :, features.shape[1] - side * side :
            ]  # the class token, where there is one, comes first
            features = features.transpose(1, 2).unflatten(2, (side, side))  # (B, D, H, W)
        return features

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised pictures ``(B, 3, S, S)`` -> features ``(B, P, C)``, positions row by row."""
        features = self.feature_map(pictures)
        if self._pool != "native":
            size = (
                min(int(self._pool), features.shape[2]),
                min(int(self._pool), features.shape[3]),
            )  # a coarser map is never enlarged
            if size != tuple(features.shape[2:]):
                features = F.adaptive_avg_pool2d(features.float(), size)
        return features.flatten(2).transpose(1, 2)


def known_encoders() -> list[str]:
    """Names of torchvision's classification models, sorted."""
    return torchvision.models.list_models(module=torchvision.models)


def check_grid(grid: int | str) -> int | str:
    """``grid`` if it is one: a positive whole number, or ``native``.

    Raises:
        CaptionerError: anything else.
    """
    if grid == "native" or (isinstance(grid, int) and not isinstance(grid, bool) and grid >= 1):
        return grid
    raise CaptionerError(f"extract.grid={grid!r}: it must be a whole number of at least 1, or native")


def build_encoder(
    name: str, weights: str = "random", seed: int = 1, grid: int | str = "native", image_size: int = 224
) -> Encoder:
    """A frozen encoder by the name of its torchvision classifier.

    Args:
        weights: bundled, imagenet, random, or the path of a state dict or of a folder of ``<name>.pth|.safetensors``.
        seed: draws the weights where they are random.
        grid: pool the map to ``grid x grid`` by adaptive averages; a map that is coarser keeps its size. ``native``: no
            pooling.
        image_size: side of the pictures in pixels.

    Raises:
        CaptionerError: the name is unknown (the nearest is named), the weights do not load or do not fit, or the
            encoder takes no pictures of this size.
    """
    check_grid(grid)
    if name not in known_encoders():
        near = difflib.get_close_matches(name.lower(), known_encoders(), n=1, cutoff=0.4)
        raise CaptionerError(
            f"encoder={name}: torchvision has no such classifier"
            + (f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known_encoders())}")
        )
    model = build_classifier(name, weights, seed)
    known = {key: value.shape for key, value in model.state_dict().items()}
    encoder = Encoder(name, cut(model), grid)
    if weights not in ("random", "imagenet"):
        weights = load_weights(encoder.body, name, weights, known)
    encoder.weights_name, encoder.weights_sha256 = weights, content_sha256(encoder.body)
    try:
        with torch.inference_mode():
            features = encoder.feature_map(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise CaptionerError(
            f"encoder={name} takes no pictures of {image_size}x{image_size} pixels; use extract.image_size=224"
        ) from error
    encoder.channels, encoder.map = features.shape[1], tuple(features.shape[2:])
    encoder.grid = encoder.map if grid == "native" else (min(int(grid), encoder.map[0]), min(int(grid), encoder.map[1]))
    return encoder


def _tamed(model: nn.Module) -> nn.Module:
    """A freshly drawn classifier whose activations stay within float16's range, 65504.

    Before any training batch normalisation is the identity, and each of a ResNet's residual blocks doubles the
    variance: 33 or 50 of them make features of 10^5 or 10^8. Where there are more than ResNet50's 16, the N branches
    are scaled by N^-1/2 (as in Radford et al. 2019, section 2.3). Grouped convolutions (ResNeXt) are drawn smaller and
    need nothing.
    """
    if isinstance(model, torchvision.models.ResNet) and model.groups == 1:
        blocks = [module for module in model.modules() if isinstance(module, torchvision.models.resnet.Bottleneck)]
        for block in blocks if len(blocks) > 16 else ():
            nn.init.constant_(block.bn3.weight, len(blocks) ** -0.5)
    return model


def published_weights(name: str) -> Any:
    """Torchvision's ImageNet weights that are taken for a classifier; ``url`` says where they are."""
    published = torchvision.models.get_model_weights(name)
    # where there are two recipes, the first is the one that published captioning results used
    return getattr(published, "IMAGENET1K_V1", None) or published.DEFAULT


def build_classifier(name: str, weights: str, seed: int) -> nn.Module:
    """The whole classifier in eval mode, with torchvision's ImageNet weights, or for any other value of ``weights``
    with random (seeded) ones.

    Raises:
        CaptionerError: the ImageNet weights cannot be fetched, or are not what their hash says.
    """
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["transform_input"] = (
            True  # their published weights expect inputs of another scale and say so only when torchvision loads them
        )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some classifiers announce changes of their random initialisation
        torch.manual_seed(seed)
        if weights != "imagenet":
            return _tamed(torchvision.models.get_model(name, weights=None, **options)).eval()
        chosen = published_weights(name)
        try:
            return torchvision.models.get_model(name, weights=chosen, **options).eval()
        except (OSError, RuntimeError) as error:  # no network; or a file whose hash is not the one in its name
            reason = " ".join(str(error).split())[:160]
            raise CaptionerError(
                f"extract.weights=imagenet: {name}'s weights could not be fetched from {chosen.url} ({reason}); "
                "fetch that file elsewhere and give its path as extract.weights, or use extract.weights=bundled or random"
            ) from error


class _Tracer(fx.Tracer):
    """Follows a classifier down to torch's and torchvision's own building blocks."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module).__module__.startswith("torchvision.ops") or super().is_leaf_module(module, name)


class _Shapes(fx.Interpreter):
    """Runs a traced module and remembers the shape of everything that it computes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.shapes[node] = tuple(value.shape)
        return value


def cut(model: nn.Module) -> Cut:
    """Cut a classifier in eval mode at its last map.

    Raises:
        CaptionerError: it has none.
    """
    graph = _Tracer().trace(model)
    probe = _Shapes(fx.GraphModule(model, graph))
    with torch.inference_mode():
        probe.run(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))
    shapes = {node.name: shape for node, shape in probe.shapes.items()}
    children = dict(model.named_children())
    owners = {node: child for node in graph.nodes if (child := _owner(node).split(".")[0]) in children}
    head = [child for child in owners.values() if any(True for _ in children[child].parameters())][
        -1
    ]  # what has weights and comes last
    for node in reversed(
        list(graph.nodes)[: next(place for place, node in enumerate(graph.nodes) if owners.get(node) == head)]
    ):
        shape = shapes.get(node.name, ())
        pooling = node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d)
        map = len(shape) == 4 and shape[2] * shape[3] > 1 and not pooling
        tokens = len(shape) == 3 and shape[1] > 2 and math.isqrt(shape[1]) ** 2 in (shape[1], shape[1] - 1)
        if map or tokens:
            break
    else:
        raise CaptionerError(f"{type(model).__name__}: this classifier has no spatial map; use another encoder")
    for output in [other for other in graph.nodes if other.op == "output"]:
        graph.erase_node(output)
    graph.output(node)
    graph.eliminate_dead_code()
    layer = (
        str(node.target)
        if node.op == "call_module"
        else f"{_owner(node)}.{getattr(node.target, '__name__', node.target)}".lstrip(".")
    )
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    activations = max(
        sizes.get(node.name, 0) + sum(sizes.get(source.name, 0) for source in node.all_input_nodes)
        for node in graph.nodes
    )
    return Cut(fx.GraphModule(model, graph).eval(), layer, tokens, activations)


def _owner(node: fx.Node) -> str:
    """The path of the module whose forward computes a node; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    return str(node.target) if node.op == "call_module" else str(next(reversed(stack))) if stack else ""
