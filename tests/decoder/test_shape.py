"""Layers, tied weights, norms and mapped word vectors, alone and together, against the equations in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioner.decoder import DecoderConfig, build_decoder
from captioner.decoder.norm import BatchNorm
from captioner.errors import CaptionerError
from tests.decoder.comparing import (
    TeacherForcing,
    assert_is_the_equations,
    assert_steps_are_teacher_forcing,
    teacher_forced,
)
from tests.decoder.examples import CHANNELS, POSITIONS, VOCABULARY, make_decoder, make_features, make_tokens

LENGTHS = [[3, 5, 1, 4], [6, -1, 2, 2], [1, 0, -1, -1]]  # ragged, with missing captions and an empty one
SHAPES = {
    "two layers": {"layers": 2},
    "three layers": {"layers": 3},
    "batch norm": {"norm": "batch"},
    "no norm": {"norm": "none", "position": "none"},
    "mapped": {"vector_size": 7},
    "tied": {"tie_weights": True},
    "tied without a map": {"tie_weights": True, "embedding_size": 10},
    "tied and mapped": {"tie_weights": True, "vector_size": 7},
    "tied and mapped on the way in": {"tie_weights": True, "vector_size": 10},
    "all": {"layers": 2, "norm": "batch", "tie_weights": True, "vector_size": 7},
}
MAPS = {
    "mapped": (True, False),
    "tied": (False, True),
    "tied and mapped": (True, True),
    "tied and mapped on the way in": (True, False),
    "all": (True, True),
}


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_teacher_forcing_is_the_equations(decoder: str, tuned: bool, shape: str) -> None:
    model = make_decoder(decoder, tune_embeddings=tuned, **SHAPES[shape])
    assert_is_the_equations(model, make_features(3), make_tokens(LENGTHS))
    assert (model.embedding.weight.grad is not None) == tuned
    maps = (model.embedding_map, model.output_map)
    assert tuple(isinstance(layer, nn.Linear) for layer in maps) == MAPS.get(shape, (False, False))


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_step_by_step_gives_the_logits_of_teacher_forcing(decoder: str, shape: str) -> None:
    model = make_decoder(decoder, **SHAPES[shape])
    teacher_forced(model, make_features(3, seed=7), make_tokens(LENGTHS))  # running statistics of something
    assert_steps_are_teacher_forcing(model.eval(), make_features(3), make_tokens(LENGTHS))


def test_batch_norm_in_eval_mode_is_the_equations() -> None:
    model = make_decoder(norm="batch")
    teacher_forced(model, make_features(3, seed=7), make_tokens(LENGTHS))
    assert_is_the_equations(model.eval(), make_features(3), make_tokens(LENGTHS))


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_gradients_numerically(decoder: str) -> None:
    model, tokens = make_decoder(decoder, tune_embeddings=True, **SHAPES["all"]), make_tokens([[2, 1], [1, -1]])
    function = TeacherForcing(model)
    names, parameters = zip(*function.named_parameters())

    def loss(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(function, dict(zip(names, values)), (features, tokens))
        return F.cross_entropy(outputs.logits, outputs.targets) + (outputs.attention**2).sum()

    inputs = [
        make_features(2).requires_grad_(),
        *(parameter.detach().clone().requires_grad_() for parameter in parameters),
    ]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_dropout_between_layers() -> None:
    """What the second layer reads has zeros in training, in eval mode none."""
    model, features, tokens = make_decoder(layers=2, dropout=0.5), make_features(2), make_tokens([[3], [2]])
    seen: list[torch.Tensor] = []
    model.between[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    teacher_forced(model, features, tokens)
    dropped = (torch.cat(seen) == 0).double().mean().item()  # of 7 tokens of 10 units
    assert [tuple(part.shape) for part in seen] == [(2, 1, 10)] * 3 + [(1, 1, 10)] and 0.25 < dropped < 0.75
    seen.clear()
    teacher_forced(model.eval(), features, tokens)
    assert len(seen) == 4 and (torch.cat(seen) != 0).all()


def test_the_tied_weight_exists_once() -> None:
    model = make_decoder(tie_weights=True, tune_embeddings=True)
    assert model.vocabulary is None
    square = [name for name, parameter in model.named_parameters() if parameter.shape[0] == VOCABULARY]
    assert square == ["tied_bias", "embedding.weight"]
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
    features, tokens = make_features(2), make_tokens([[2], [3]])
    other = copy.deepcopy(model)
    with torch.device("meta"):
        empty = build_decoder(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    expected = teacher_forced(model, features, tokens).logits
    for own in (other, empty):
        assert torch.equal(teacher_forced(own, features, tokens).logits, expected)
    with torch.no_grad():  # a word nothing reads changes its own logit alone
        unused = next(word for word in range(VOCABULARY) if not (tokens == word).any())
        other.embedding.weight[unused] += 1
    changed = (teacher_forced(other, features, tokens).logits != expected).any(0)
    assert changed.nonzero().flatten().tolist() == [unused]


def test_usual_settings_have_these_tensors() -> None:
    """Stored models have these names; a map of a size to itself is none."""
    names = [
        "embedding.weight",
        "projection.weight",
        "projection.bias",
        "norm.weight",
        "norm.bias",
        "position",
        "attention.query.weight",
        "attention.query.bias",
        "attention.key.weight",
        "attention.score.weight",
        "gate.weight",
        "gate.bias",
        "initial.weight",
        "initial.bias",
        "word.weight",
        "word.bias",
        "context.weight",
        "layers.0.recurrent.weight",
        "layers.0.recurrent.bias",
        "output_word.weight",
        "output_context.weight",
        "vocabulary.weight",
        "vocabulary.bias",
    ]
    assert sorted(make_decoder().state_dict()) == sorted(make_decoder(vector_size=5).state_dict()) == sorted(names)


def test_batch_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    assert set(theirs.state_dict()) == set(ours.state_dict())
    for norm in (ours, theirs):
        norm.load_state_dict(
            {"weight": torch.tensor([1.5, -0.5, 2.0, 0.1]), "bias": torch.tensor([0.3, 0.0, -1.0, 2.0])}, strict=False
        )
    for _ in range(3):
        x = (torch.randn(5, 3, 4, dtype=torch.float64) * torch.tensor([50.0, 1.0, 0.01, 3.0]) + 7).requires_grad_()
        y = x.detach().flatten(0, 1).requires_grad_()
        factor = torch.randn(5, 3, 4, dtype=torch.float64)
        found, expected = ours(x), theirs(y).view_as(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for norm, outputs in ((ours, found), (theirs, expected)):
            norm.zero_grad()
            (outputs.tanh() * factor).sum().backward()
        torch.testing.assert_close(x.grad.flatten(0, 1), y.grad, rtol=1e-8, atol=1e-9)
        for name in ("weight", "bias"):
            torch.testing.assert_close(getattr(ours, name).grad, getattr(theirs, name).grad, rtol=1e-9, atol=1e-9)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-11, atol=1e-12)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x.flatten(0, 1)).view_as(x))


def test_batch_norm_of_a_single_cell_is_its_bias() -> None:
    """Its variance is 0. torch refuses it, but a grid of one cell and a last batch of one image are legal."""
    norm = BatchNorm(2)
    norm.bias.data = torch.tensor([1.0, -2.0])
    assert norm(torch.tensor([[[5.0, 6.0]]])).tolist() == [[[1, -2]]]
    assert norm.running_mean.tolist() == pytest.approx([0.5, 0.6]) and norm.running_var.tolist() == pytest.approx(
        [0.9, 0.9]
    )


@pytest.mark.parametrize("position", ["learned", "none"])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_bf16_is_nearly_the_same(norm: str, position: str) -> None:
    """bf16 costs its rounding (2^-9 a number) and no more; gradients have the parameters' dtype."""
    model = make_decoder(
        "lstm", layers=2, norm=norm, position=position, tie_weights=True, vector_size=7, tune_embeddings=True
    ).float()
    features, tokens = make_features(3).half(), make_tokens(LENGTHS)
    exact = teacher_forced(model, features, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher_forced(model, features, tokens)
    assert exact.logits.shape == (33, VOCABULARY) and not torch.equal(rounded.logits.float(), exact.logits)
    assert (rounded.logits.float() - exact.logits).norm() < 0.03 * exact.logits.norm()
    rounded.logits.float().square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_an_unknown_norm_and_other_word_vectors_are_refused() -> None:
    with pytest.raises(CaptionerError, match="train.norm=group: no such normalisation; .* layer, batch, none"):
        make_decoder(norm="group")
    config = DecoderConfig("gru", "soft", VOCABULARY, 5, CHANNELS, POSITIONS, vector_size=7)
    with pytest.raises(ValueError, match=r"word vectors \(23, 5\), settings \(23, 7\)"):
        build_decoder(config, torch.zeros(VOCABULARY, 5))
