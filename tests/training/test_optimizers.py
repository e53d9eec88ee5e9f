"""Optimizers against their equations, their groups, and the average of the weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captioner.decoder import DecoderConfig, build_decoder
from captioner.decoder.recurrent import RecurrentDecoder
from captioner.errors import CaptionerError
from captioner.parameters import TrainParameters
from captioner.training.checkpoint import optimizer_tensors, read_state, restore_optimizer, write_state
from captioner.training.optimizers import EMA, build_optimizer, parameter_groups, set_rates

RATES = (0.01, 0.003)


def make_decoder(**changes: Any) -> RecurrentDecoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        "gru", "soft", 9, 3, 4, 4, feature_size=5, hidden_size=6, attention_size=3, tune_embeddings=True, **changes
    )
    return build_decoder(config).double()


def draw_gradients(decoder: RecurrentDecoder, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gradients = {}
    for name, parameter in decoder.named_parameters():
        gradients[name] = parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return gradients


def by_hand(kind: str, w: Tensor, g: Tensor, state: dict, t: int, rate: float, decay: float, momentum: float) -> Tensor:
    """Step ``t``, from 1, of one parameter, as the papers and torch's manual write it."""
    if kind == "adamw":
        w = w - rate * decay * w
    else:
        g = g + decay * w
    if kind in ("adam", "adamw"):
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
        state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
        return w - rate * (state["m"] / (1 - 0.9**t)) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)
    if kind == "sgd":
        state["b"] = momentum * state["b"] + g if "b" in state else g
        return w - rate * state["b"]
    if kind == "rmsprop":
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * g**2
        state["b"] = momentum * state.get("b", 0) + g / (state["v"].sqrt() + 1e-8)
        return w - rate * state["b"]
    state["s"] = state.get("s", 0) + g**2
    return w - rate * g / (state["s"].sqrt() + 1e-10)


CASES = [(kind, 0.0) for kind in ("adam", "adamw", "sgd", "rmsprop", "adagrad")] + [("sgd", 0.8), ("rmsprop", 0.8)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "momentum"), CASES)
def test_three_updates_are_the_equations(kind: str, momentum: float, decay: float) -> None:
    decoder = make_decoder()
    optimizer = build_optimizer(decoder, TrainParameters(optimizer=kind, momentum=momentum, weight_decay=decay))
    set_rates(optimizer, RATES)
    expected = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    states: dict[str, dict] = {name: {} for name in expected}
    for step in range(1, 4):
        for name, gradient in draw_gradients(decoder, step).items():
            rate = RATES[name.partition(".")[0] in ("projection", "norm", "position")]
            decayed = not (name.endswith("bias") or name.startswith(("norm.", "embedding.", "position")))
            expected[name] = by_hand(
                kind, expected[name], gradient, states[name], step, rate, decay * decayed, momentum
            )
        optimizer.step()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-11, atol=1e-13)


def test_what_is_decayed() -> None:
    decoder = make_decoder()
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    groups = parameter_groups(decoder, 0.1)
    assert [(group["part"], group["weight_decay"]) for group in groups] == [
        ("decoder", 0.1),
        ("decoder", 0.0),
        ("projection", 0.1),
        ("projection", 0.0),
    ]
    found = [{names[id(parameter)] for parameter in group["params"]} for group in groups]
    assert found[2] == {"projection.weight"} and found[3] == {"projection.bias", "norm.weight", "norm.bias", "position"}
    assert {"vocabulary.weight", "layers.0.recurrent.weight", "attention.score.weight"} <= found[0] and not any(
        "bias" in name for name in found[0]
    )
    assert {"embedding.weight", "vocabulary.bias"} <= found[1]
    assert sum(map(len, found)) == len(names)
    assert [group["part"] for group in parameter_groups(decoder, 0.0)] == ["decoder", "projection"]


def test_a_tied_weight_is_updated_once_and_not_decayed() -> None:
    """It is the word vectors'; a batch norm is spared as a layer norm is, and maps and layers are decayed."""
    decoder = make_decoder(tie_weights=True, norm="batch", layers=2, vector_size=4)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    groups = parameter_groups(decoder, 0.1)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members)) == len(names)
    found = [{names[id(parameter)] for parameter in group["params"]} for group in groups]
    assert {"between.0.weight", "layers.1.recurrent.weight", "embedding_map.weight", "output_map.weight"} <= found[0]
    assert {"embedding.weight", "tied_bias", "between.0.bias", "layers.1.recurrent.bias"} <= found[1]
    assert found[3] == {"projection.bias", "norm.weight", "norm.bias", "position"}
    frozen = make_decoder(tie_weights=True)
    frozen.embedding.weight.requires_grad_(False)
    assert all(
        parameter is not frozen.embedding.weight
        for group in parameter_groups(frozen, 0.0)
        for parameter in group["params"]
    )


def test_momentum_of_an_optimizer_without_one_is_refused() -> None:
    for kind in ("adam", "adamw", "adagrad"):
        with pytest.raises(
            CaptionerError, match=f"train.momentum=0.9: train.optimizer={kind} has no such momentum.*sgd or rmsprop"
        ):
            build_optimizer(make_decoder(), TrainParameters(optimizer=kind, momentum=0.9))


@pytest.mark.parametrize(("kind", "momentum"), CASES)
def test_state_comes_back_exactly_from_a_file(tmp_path: Path, kind: str, momentum: float) -> None:
    options = TrainParameters(optimizer=kind, momentum=momentum, weight_decay=0.1)
    first, second = make_decoder().float(), make_decoder().float()
    optimizers = [build_optimizer(decoder, options) for decoder in (first, second)]

    def step(decoder: RecurrentDecoder, optimizer: torch.optim.Optimizer, number: int) -> None:
        set_rates(optimizer, RATES)
        generator = torch.Generator().manual_seed(number)
        for parameter in decoder.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    step(first, optimizers[0], 1)
    step(first, optimizers[0], 2)
    write_state(tmp_path, "1", optimizer_tensors(optimizers[0]), {})
    second.load_state_dict(first.state_dict())
    restore_optimizer(optimizers[1], read_state(tmp_path)[0])
    step(first, optimizers[0], 3)
    step(second, optimizers[1], 3)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters()))
    if kind != "sgd" or momentum:  # a state that was lost would show
        other = make_decoder().float()
        fresh = build_optimizer(other, options)
        for one, two in zip(first.parameters(), other.parameters()):
            two.data.copy_(one.data)
        step(first, optimizers[0], 4)
        step(other, fresh, 4)
        assert not torch.equal(first.vocabulary.weight, other.vocabulary.weight)


def test_moving_average_by_hand() -> None:
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    average, expected = EMA({"w": weight}, 0.25), [1.0, -2.0]
    for step, values in enumerate([[2.0, 0.0], [3.0, 1.0], [5.0, -1.0], [4.0, 4.0], [0.0, 8.0]]):
        weight.data.copy_(torch.tensor(values))
        average.update(step)
        kept = [1 / 10, 2 / 11, 3 / 12, 0.25, 0.25][step]  # (1 + t) / (10 + t), at most the decay
        expected = [kept * old + (1 - kept) * new for old, new in zip(expected, values)]
        assert average.tensors["w"].tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert weight.tolist() == pytest.approx(expected, rel=1e-12)
        1 / 0
    assert weight.tolist() == [0.0, 8.0] and math.isclose(average.tensors["w"][0].item(), expected[0])
    other = EMA({"w": weight}, 0.25)
    other.restore(average.tensors)
    assert other.tensors["w"].tolist() == average.tensors["w"].tolist()
    weight.data.zero_()
    other.update(0)  # its own copy changes, not what it was restored from
    assert average.tensors["w"].tolist() == pytest.approx(expected, rel=1e-12)
