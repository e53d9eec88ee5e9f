"""The decoder against the equations, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.batches import inputs_and_targets
from captioner.decoder import Decoder
from captioner.decoder.attention import ATTENTIONS
from captioner.errors import CaptionerError
from tests.decoder.comparing import (
    TeacherForcing,
    assert_is_the_equations,
    assert_learns_by_heart,
    assert_steps_are_teacher_forcing,
    by_caption,
    teacher_forced,
)
from tests.decoder.examples import CHANNELS, POSITIONS, VOCABULARY, make_decoder, make_features, make_tokens

KINDS = [(cell, attention) for cell in ("gru", "lstm") for attention in ATTENTIONS]
LENGTHS = [[3, 5, 1, 4], [6, -1, 2, 2], [1, 0, -1, -1]]  # ragged, with missing captions and an empty one


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])
def test_teacher_forcing_is_the_equations(decoder: str, attention: str, position: str) -> None:
    model, features, tokens = (
        make_decoder(decoder, attention, position=position, tune_embeddings=True),
        make_features(3),
        make_tokens(LENGTHS),
    )
    assert_is_the_equations(model, features, tokens)
    assert attention == "hard" or all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
def test_gradients_numerically(decoder: str, attention: str) -> None:
    model, tokens = make_decoder(decoder, attention, tune_embeddings=True), make_tokens([[2, 1], [1, -1]])
    function = TeacherForcing(model)
    names, parameters = zip(*function.named_parameters())
    for parameter in parameters:
        parameter.data *= 0.5

    def loss(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(function, dict(zip(names, values)), (features, tokens))
        return F.cross_entropy(outputs.logits, outputs.targets) + (outputs.attention**2).sum()

    inputs = [
        make_features(2).requires_grad_(),
        *(parameter.detach().clone().requires_grad_() for parameter in parameters),
    ]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
def test_step_by_step_gives_the_logits_of_teacher_forcing(decoder: str, attention: str) -> None:
    assert_steps_are_teacher_forcing(make_decoder(decoder, attention), make_features(3), make_tokens(LENGTHS))


def test_beams_and_images_can_be_selected_and_reordered() -> None:
    model, features, tokens = make_decoder("lstm", layers=2), make_features(3), make_tokens([[2, 3], [4, 1], [3, 2]])
    memory = model.encode(features)
    _, state, _ = model.step(tokens[:, :, 0], model.initial_state(memory, 2), memory)
    _, state, _ = model.step(tokens[:, :, 1], state, memory)  # here the beams of an image differ
    parents = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    words = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    logits, _, _ = model.step(words, state.reorder(parents), memory)
    images = torch.tensor([2, 0])
    some, _, _ = model.step(words[images], state.reorder(parents).select(images), memory.select(images))
    torch.testing.assert_close(some, logits[images])
    for i in range(3):
        for k in range(3):  # alone, from START
            alone, own = model.encode(features[i : i + 1]), tokens[i, parents[i, k]]
            fresh = model.initial_state(alone, 1)
            for word in own[:2]:
                _, fresh, _ = model.step(word.view(1, 1), fresh, alone)
            expected, _, _ = model.step(words[i, k].view(1, 1), fresh, alone)
            torch.testing.assert_close(logits[i, k], expected[0, 0])


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
def test_a_step_leaves_what_the_last_one_returned(decoder: str, attention: str) -> None:
    model, tokens = make_decoder(decoder, attention), make_tokens([[2, 3], [4, 1]])
    memory = model.encode(make_features(2))
    first, state, weights = model.step(tokens[:, :, 0], model.initial_state(memory, 2), memory)
    kept = [tensor.clone() for tensor in (first, weights, *state.tensors)]
    second, _, _ = model.step(tokens[:, :, 1], state, memory)
    assert not torch.equal(first, second)
    assert all(torch.equal(one, two) for one, two in zip((first, weights, *state.tensors), kept))


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
@pytest.mark.parametrize("shape", [{}, {"layers": 2, "tie_weights": True, "norm": "batch", "vector_size": 7}])
def test_padding_changes_nothing(decoder: str, attention: str, shape: dict) -> None:
    """More columns and captions of PAD leave logits and gradients as they are."""
    model, features, tokens = make_decoder(decoder, attention, **shape), make_features(3), make_tokens(LENGTHS)
    padded = torch.cat([F.pad(tokens, (0, 5)), torch.zeros(3, 2, tokens.shape[2] + 5, dtype=torch.int64)], 1)
    expected, gradients = losses_and_gradients(model, features, tokens)
    found, others = losses_and_gradients(model, features, padded)
    assert len(found) == 33
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            others[name], gradient, rtol=1e-9, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}"
        )


def losses_and_gradients(model: Decoder, features: Tensor, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    outputs = teacher_forced(model, features, tokens)
    losses = F.cross_entropy(outputs.logits, outputs.targets, reduction="none")
    losses.sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return losses.detach(), found


def test_logits_of_chosen_tokens() -> None:
    """``index`` says which, in which order; rows of PAD may be asked for too."""
    model, tokens = make_decoder(), make_tokens(LENGTHS)
    inputs, _ = inputs_and_targets(tokens)
    memory = model.encode(make_features(3))
    everything, attention = model(memory, inputs, torch.arange(inputs.numel()))
    assert everything.shape == (inputs.numel(), VOCABULARY) and attention.shape == (*inputs.shape, POSITIONS)
    torch.testing.assert_close(model(memory, inputs)[0], everything[inputs.flatten() != 0])
    index = torch.tensor([9, 0, 4, 4])
    torch.testing.assert_close(model(memory, inputs, index)[0], everything[index])


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_grouping_and_order_change_nothing(decoder: str) -> None:
    model, features, lengths = make_decoder(decoder), make_features(3), [[3, 5, 1], [6, 2, 4], [2, 2, 7]]
    tokens = make_tokens(lengths)
    expected = by_caption(teacher_forced(model, features, tokens).logits, tokens)

    order = torch.tensor([2, 0, 1])
    single = tokens.flatten(0, 1).unsqueeze(1)  # K = 1
    alone = by_caption(teacher_forced(model, features.repeat_interleave(3, 0), single).logits, single)
    other = tokens[order].flip(1)
    shuffled = by_caption(teacher_forced(model, features[order], other).logits, other)
    for (i, k), logits in expected.items():
        torch.testing.assert_close(alone[3 * i + k, 0], logits)
        torch.testing.assert_close(shuffled[order.tolist().index(i), 2 - k], logits)


def test_any_float_type_of_features() -> None:
    model, features, tokens = make_decoder().float(), make_features(2).half(), make_tokens([[2], [3]])
    torch.testing.assert_close(
        teacher_forced(model, features, tokens).logits, teacher_forced(model, features.float(), tokens).logits
    )


def test_frozen_and_tuned_word_vectors() -> None:
    tokens, features = make_tokens([[2], [3]]), make_features(2)
    for tuned in (False, True):
        model = make_decoder(tune_embeddings=tuned)
        teacher_forced(model, features, tokens).logits.sum().backward()
        assert (model.embedding.weight.grad is not None) == tuned


def test_dropout_only_while_training() -> None:
    model, tokens, features = make_decoder(dropout=0.5), make_tokens([[2], [3]]), make_features(2)
    model.eval()
    assert torch.equal(teacher_forced(model, features, tokens).logits, teacher_forced(model, features, tokens).logits)
    model.train()
    assert not torch.equal(
        teacher_forced(model, features, tokens).logits, teacher_forced(model, features, tokens).logits
    )
    torch.manual_seed(3)
    first = teacher_forced(model, features, tokens).logits
    torch.manual_seed(3)
    assert torch.equal(teacher_forced(model, features, tokens).logits, first)


def test_positions_tell_cells_apart() -> None:
    """Without positions an image whose cells are shuffled is the same image."""
    tokens, features = make_tokens([[4]]), make_features(1)
    shuffled = features[:, torch.tensor([3, 1, 5, 0, 2, 4])]
    for position, same in (("none", True), ("learned", False), ("sinusoidal", False)):
        model = make_decoder(position=position)
        assert (
            torch.allclose(
                teacher_forced(model, features, tokens).logits, teacher_forced(model, shuffled, tokens).logits
            )
            == same
        )


def test_sinusoidal_positions_need_a_size_of_sines_and_cosines() -> None:
    with pytest.raises(CaptionerError, match="train.feature_size=10: .* a multiple of 4"):
        make_decoder(position="sinusoidal", feature_size=10)


def test_memory_is_shared_by_beams() -> None:
    model = make_decoder()
    memory = model.encode(make_features(2))
    assert memory.values.shape[0] == memory.keys.shape[0] == 2
    state = model.initial_state(memory, 50)
    assert all(tensor.shape == (2, 50, 10) for tensor in state.tensors)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CaptionerError, match="decoder=rnn.*gru, lstm, transformer"):
        make_decoder("rnn")
    with pytest.raises(CaptionerError, match="attention=loud.*soft, hard, dot, multihead, bilinear, none"):
        make_decoder("gru", "loud")
    with pytest.raises(CaptionerError, match="train.heads=4: it does not divide train.attention_size=6"):
        make_decoder("gru", "multihead", heads=4)


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_without_captions(decoder: str, attention: str, images: int) -> None:
    """A rank that has no image or no caption does its passes all the same."""
    model = make_decoder(decoder, attention, norm="layer")
    features = torch.zeros(images, POSITIONS, CHANNELS, dtype=torch.float64)
    outputs = teacher_forced(model, features, torch.zeros(images, 2, 4, dtype=torch.int64))
    assert outputs.logits.shape == (0, VOCABULARY) and outputs.attention.shape == (images, 2, 3, POSITIONS)
    outputs.logits.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert trained and not any(parameter.grad.any() for parameter in trained)


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_learns_eight_captions_by_heart(decoder: str) -> None:
    assert_learns_by_heart(make_decoder(decoder, hidden_size=32, feature_size=16).float(), 0.02)
