"""The decoder against the equations, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captioner.batches import inputs_and_targets
from captioner.decoder import unmasked
from captioner.decoder.attention import ATTENTIONS
from captioner.errors import CaptionerError
from tests.decoder.comparing import (
    assert_is_the_equations,
    assert_same,
    assert_steps_are_teacher_forcing,
    cross_entropy,
    gradients,
    teacher_forced,
)
from tests.decoder.examples import make_decoder, make_features, make_tokens

KINDS = [(cell, attention) for cell in ("gru", "lstm") for attention in ATTENTIONS]
LENGTHS = [[3, 5, 1, 4], [6, -1, 2, 2], [1, 0, -1, -1]]  # ragged, with missing captions and an empty one


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])
def test_teacher_forcing_is_the_equations(decoder: str, attention: str, position: str) -> None:
    model = make_decoder(decoder, attention, position=position, tune_embeddings=True)
    assert_is_the_equations(model, make_features(3), make_tokens(LENGTHS))
    assert attention == "hard" or all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
def test_gradients_numerically(decoder: str, attention: str) -> None:
    model, tokens = make_decoder(decoder, attention, tune_embeddings=True), make_tokens([[2, 1], [1, -1]])
    for parameter in model.parameters():
        parameter.data *= 0.5
    assert_gradients_are_numerical(model, tokens)


def assert_gradients_are_numerical(model: torch.nn.Module, tokens: torch.Tensor) -> None:
    """Those of features and parameters, by finite differences of a loss of logits and attention."""
    names, parameters = zip(*model.named_parameters())

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            outputs = teacher_forced(self.model, features, tokens)
            return F.cross_entropy(outputs.logits, outputs.targets) + (outputs.weights**2).sum()

    def loss(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(Loss(), {f"model.{n}": v for n, v in zip(names, values)}, (features,))

    inputs = [make_features(2), *(parameter.detach().clone() for parameter in parameters)]
    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in inputs], fast_mode=True)


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
def test_step_by_step_gives_the_logits_of_teacher_forcing(decoder: str, attention: str) -> None:
    assert_steps_are_teacher_forcing(make_decoder(decoder, attention), make_features(3), make_tokens(LENGTHS))


@pytest.mark.parametrize(("decoder", "attention"), [*KINDS, ("gru", "three layers"), ("lstm", "three layers")])
def test_beams_and_images_can_be_selected_and_reordered(decoder: str, attention: str) -> None:
    """Each beam goes on as it does alone."""
    shape = {"layers": 3} if attention == "three layers" else {"attention": attention}
    model = make_decoder(decoder, **shape).eval()
    features, tokens = make_features(3), make_tokens([[2, 3], [4, 1], [3, 2]])
    memory = model.encode(features)
    _, state, _ = model.step(tokens[:, :, 0], model.initial_state(memory, 2), memory)
    _, state, _ = model.step(tokens[:, :, 1], state, memory)
    parents = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    words = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    logits, following, weights = model.step(words, state.reorder(parents), memory)
    images = torch.tensor([2, 0, 2])
    some, some_following, some_weights = model.step(
        words[images], state.reorder(parents).select(images), memory.select(images)
    )
    torch.testing.assert_close(some, logits[images])
    torch.testing.assert_close(some_weights, weights[images])
    for ours, theirs in zip(some_following.tensors, following.tensors, strict=True):
        torch.testing.assert_close(ours, theirs[images])
    for i in range(3):
        for k in range(3):
            path = torch.stack([tokens[i, parents[i, k], 0], tokens[i, parents[i, k], 1], words[i, k]])
            own = model.encode(features[i : i + 1])
            alone = model.initial_state(own, 1)
            for word in path:
                expected, alone, _ = model.step(word.view(1, 1), alone, own)
            torch.testing.assert_close(logits[i, k], expected[0, 0])
    assert len({tuple(row.tolist()) for row in logits.detach().flatten(0, 1).round(decimals=9)}) == 9


def test_a_step_overwrites_nothing() -> None:
    model, tokens = make_decoder("lstm", layers=2).eval(), make_tokens([[2, 3], [4, 1]])
    memory = model.encode(make_features(2))
    logits, state, weights = model.step(tokens[:, :, 0], model.initial_state(memory, 2), memory)
    kept = [logits, weights, *state.tensors, memory.values, memory.keys, memory.mean]
    before = [tensor.clone() for tensor in kept]
    logits_again, _, _ = model.step(tokens[:, :, 1], state.reorder(torch.tensor([[1, 1], [0, 1]])), memory)
    assert all(torch.equal(one, two) for one, two in zip(kept, before, strict=True))
    assert not torch.equal(logits, logits_again)


def test_logits_are_those_of_the_index_in_its_order() -> None:
    model, features, tokens = make_decoder(), make_features(3), make_tokens(LENGTHS)
    inputs, targets = inputs_and_targets(tokens)
    memory = model.encode(features)
    every, attention = model(memory, inputs, torch.arange(targets.numel()))
    assert every.shape == (targets.numel(), 23)
    default, _ = model(memory, inputs)  # all inputs that are not PAD, which are those with a target
    torch.testing.assert_close(default, every[unmasked(targets)])
    index = torch.tensor([40, 2, 2, 0, 83])
    some, same = model(memory, inputs, index)
    torch.testing.assert_close(some, every[index])
    assert torch.equal(same, attention)


def test_unmasked() -> None:
    tokens = torch.tensor([[[1, 7, 0], [0, 0, 0]], [[1, 0, 0], [1, 5, 6]]])
    assert unmasked(tokens).tolist() == [0, 1, 6, 9, 10, 11]
    assert unmasked(tokens[:0]).shape == (0,)


def test_a_batch_without_images_or_captions_has_no_logits() -> None:
    """A rank may have nothing of a batch; it still does its backward pass, in which all gradients are 0."""
    model = make_decoder(tune_embeddings=True)
    for features, tokens in (
        (make_features(0), torch.zeros(0, 2, 4, dtype=torch.int64)),
        (make_features(1), torch.zeros(1, 2, 4, dtype=torch.int64)),
    ):
        outputs = teacher_forced(model, features, tokens)
        assert outputs.logits.shape == (0, 23) and outputs.attention.shape == (len(features), 2, 3, 6)
        found = gradients(model, cross_entropy(outputs))
        assert len(found) > 10 and not any(gradient.any() for gradient in found.values())


def test_any_float_type_of_features() -> None:
    model, features, tokens = make_decoder().float(), make_features(2).half(), make_tokens([[2], [3]])
    found, expected = (teacher_forced(model, given, tokens).logits for given in (features, features.float()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_and_tuned_word_vectors(tied: bool) -> None:
    tokens, features = make_tokens([[2], [3]]), make_features(2)
    results = []
    for tuned in (False, True):
        model = make_decoder(tune_embeddings=tuned, tie_weights=tied)
        found = gradients(model, cross_entropy(teacher_forced(model, features, tokens)))
        assert ("embedding.weight" in found) == tuned
        results.append({name: gradient for name, gradient in found.items() if name != "embedding.weight"})
    assert_same(*results)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_dropout_only_while_training(attention: str) -> None:
    model, tokens, features = make_decoder("gru", attention, dropout=0.5), make_tokens([[2], [3]]), make_features(2)

    def logits() -> torch.Tensor:
        return teacher_forced(model, features, tokens).logits

    model.eval()
    assert torch.equal(logits(), logits())
    model.train()
    assert not torch.equal(logits(), logits())
    torch.manual_seed(3)
    first = logits()
    torch.manual_seed(3)
    assert torch.equal(logits(), first)


def test_positions_tell_cells_apart() -> None:
    """Without positions an image whose cells are shuffled is the same image."""
    tokens, features = make_tokens([[4]]), make_features(1)
    shuffled = features[:, torch.tensor([3, 1, 5, 0, 2, 4])]
    for position, same in (("none", True), ("learned", False), ("sinusoidal", False)):
        model = make_decoder(position=position)
        found, other = (teacher_forced(model, given, tokens).logits for given in (features, shuffled))
        assert torch.allclose(found, other) == same


def test_sinusoidal_positions_need_a_size_of_sines_and_cosines() -> None:
    with pytest.raises(CaptionerError, match="train.feature_size=10: .* a multiple of 4"):
        make_decoder(position="sinusoidal", feature_size=10)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_memory_is_shared_by_beams(attention: str) -> None:
    model = make_decoder("gru", attention)
    memory = model.encode(make_features(2))
    assert memory.values.shape == (2, 6, 8) and memory.keys.shape[:2] == (2, 6) and memory.mean.shape == (2, 8)
    state = model.initial_state(memory, 50)
    assert all(tensor.shape == (2, 50, 10) for tensor in state.tensors)
    assert all(torch.equal(tensor, tensor[:, :1].expand(2, 50, 10)) for tensor in state.tensors)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CaptionerError, match="decoder=transformer.*gru, lstm"):
        make_decoder("transformer")
    with pytest.raises(CaptionerError, match="attention=loud.*soft, hard, dot, multihead, bilinear, none"):
        make_decoder("gru", "loud")
    with pytest.raises(CaptionerError, match="train.heads=4: it does not divide train.attention_size=6"):
        make_decoder("gru", "multihead", heads=4)


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_learns_eight_captions_by_heart(decoder: str) -> None:
    model, features, tokens = (
        make_decoder(decoder, hidden_size=32, feature_size=16).float(),
        make_features(4),
        make_tokens([[3, 5], [6, 2], [4, 7], [1, 5]]),
    )
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], 0.02)
    for _ in range(150):
        outputs = teacher_forced(model, features, tokens)
        loss = F.cross_entropy(outputs.logits, outputs.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # the first word of two captions of one image cannot be known: ln 2 a caption at least
    assert loss.item() < 8 * 0.6931 / outputs.targets.numel() + 0.01
