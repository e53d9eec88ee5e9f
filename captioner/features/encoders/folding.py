"""Batch normalisations folded into the convolutions before them: the same function with fewer passes over memory."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch normalisation that directly follows a convolution into it, in place (Jacob et al. 2018, section
    3.2).

    Args:
        module: in eval mode. Convolutions are found in the graphs of traced modules and in ``nn.Sequential``.
    """
    for part in list(module.modules()):
        if isinstance(part, fx.GraphModule):
            for before, after in _followed_by_norm(part):
                _fold(part, before, after)
        elif isinstance(part, nn.Sequential):
            names = [name for name, _ in part.named_children()]
            for before, after in zip(names, names[1:]):
                if type(part.get_submodule(before)) is nn.Conv2d and type(part.get_submodule(after)) is nn.BatchNorm2d:
                    _fold(part, before, after)


def _followed_by_norm(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """Names of the (convolution, normalisation) pairs where the convolution's result goes nowhere else and both are
    used once."""
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    names = [str(node.target) for node in calls]
    pairs = []
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        before, after = str(source.target), str(node.target)
        kinds = type(traced.get_submodule(before)), type(traced.get_submodule(after))
        if kinds == (nn.Conv2d, nn.BatchNorm2d) and names.count(before) == names.count(after) == 1:
            pairs.append((before, after))
    return pairs


def _fold(parent: nn.Module, before: str, after: str) -> None:
    convolution, norm = parent.get_submodule(before), parent.get_submodule(after)
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    parent.set_submodule(before, fuse_conv_bn_eval(convolution, norm))
    parent.set_submodule(after, nn.Identity())
