"""The torchvision family: every torchvision classifier, cut at its last spatial map.

One rule for all of them, no list of names: the model is traced, and the last spatial output before the classification
head is its feature map. That is either ``(B, C, H, W)`` with more than one position, or a transformer's tokens
``(B, T, D)``, where T is a square number, plus one for a class token (which is dropped).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from captioner.errors import CaptionerError
from captioner.features.encoders.encoder import FINAL, Cut, Encoder, InputSpec, Published
from captioner.features.encoders.torchvision_compat import torchvision
from captioner.features.encoders.weights import content_sha256, load_weights, weights_name

_PROBE_SIZE = 224  # every torchvision classifier takes 224x224 images, some take nothing else


def names() -> list[str]:
    """Names of torchvision's classification models, sorted."""
    return torchvision.models.list_models(module=torchvision.models)


def owns(name: str) -> bool:
    """Whether a name is of this family."""
    return name in names()


def image_size(name: str) -> int:
    """224 for every classifier, also those that were trained on larger images."""
    return InputSpec.image_size


def build(name: str, weights: str, seed: int, grid: int | str, image_size: int, layer: str) -> Encoder:
    """A classifier cut at its last map, with its weights."""
    weights = weights_name(name, weights)
    if layer != FINAL:
        raise CaptionerError(f"extract.layer={layer}: {name} has its final map only; use extract.layer={FINAL}")
    if weights == "package":
        raise CaptionerError(
            f"extract.weights=package: no package holds weights of {name}; use encoder=timm/tf_efficientnet_lite0, "
            "or extract.weights=pretrained or a path"
        )
    model = build_classifier(name, weights, seed)
    known = model.state_dict().keys()
    encoder = Encoder(name, cut(model), grid, InputSpec(image_size))
    if weights not in ("random", "imagenet"):
        weights = load_weights(encoder.body, name, weights, known)
    encoder.weights_name, encoder.weights_sha256 = weights, content_sha256(encoder.body)
    return encoder


def published(name: str) -> Published:
    """Torchvision's weights in torch's cache. Their licence is not stated."""
    url = published_weights(name).url
    return Published(url, Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1], None)


def _scale_random_init(model: nn.Module) -> nn.Module:
    """Scale a randomly initialised ResNet so that its activations stay within float16's range, 65504.

    Before training, batch normalisation is the identity, and each residual block doubles the variance: 33 or 50 blocks
    make features of 10^5 or 10^8. With more blocks than ResNet50's 16, the N branches are scaled by N^-1/2 (as in
    Radford et al. 2019, section 2.3). Grouped convolutions (ResNeXt) start smaller and need no scaling.
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
        # their published weights expect inputs of another scale; torchvision sets this only when it loads them itself
        options["transform_input"] = True
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some classifiers announce changes of their random initialisation
        torch.manual_seed(seed)
        if weights != "imagenet":
            return _scale_random_init(torchvision.models.get_model(name, weights=None, **options)).eval()
        chosen = published_weights(name)
        try:
            return torchvision.models.get_model(name, weights=chosen, **options).eval()
        except (OSError, RuntimeError) as error:  # no network; or a file whose hash is not the one in its name
            reason = " ".join(str(error).split())[:160]
            raise CaptionerError(
                f"extract.weights=pretrained: {name}'s weights could not be fetched from {chosen.url} ({reason}); "
                "fetch that file elsewhere and give its path as extract.weights, "
                "or use extract.weights=bundled or random"
            ) from error


class _Tracer(fx.Tracer):
    """Follows a classifier down to torch's and torchvision's own building blocks."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))  # type: ignore[arg-type]  # annotated too narrowly

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
    # the head is the last child that has weights
    head = [child for child in owners.values() if any(True for _ in children[child].parameters())][-1]
    start = next(index for index, node in enumerate(graph.nodes) if owners.get(node) == head)
    for node in reversed(list(graph.nodes)[:start]):
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
    return Cut(fx.GraphModule(model, graph).eval(), layer, _tokens_to_map if tokens else _map, activations)


def _map(body: nn.Module, images: Tensor) -> Tensor:
    return body(images)


def _tokens_to_map(body: nn.Module, images: Tensor) -> Tensor:
    """The tokens (B, T, D) of a vision transformer as a map (B, D, H, W), without the class token in front."""
    tokens = body(images)
    side = math.isqrt(tokens.shape[1])
    return tokens[:, tokens.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))


def _owner(node: fx.Node) -> str:
    """The path of the module whose forward computes a node; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    return str(node.target) if node.op == "call_module" else str(next(reversed(stack))) if stack else ""
