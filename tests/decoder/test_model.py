"""The fast decoder against the equations, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captioner.decoder.attention import ATTENTIONS
from captioner.errors import CaptionerError
from tests.decoder.comparing import assert_is_the_equations, assert_steps_are_teacher_forcing, by_caption
from tests.decoder.examples import CHANNELS, POSITIONS, make_decoder, make_features, make_tokens

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
    names, parameters = zip(*model.named_parameters())
    for parameter in parameters:
        parameter.data *= 0.5

    def loss(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(model, dict(zip(names, values)), (features, tokens))
        return F.cross_entropy(outputs.logits, outputs.targets) + (outputs.weights**2).sum()

    inputs = [
        make_features(2).requires_grad_(),
        *(parameter.detach().clone().requires_grad_() for parameter in parameters),
    ]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
def test_step_by_step_gives_the_logits_of_teacher_forcing(decoder: str, attention: str) -> None:
    assert_steps_are_teacher_forcing(make_decoder(decoder, attention), make_features(3), make_tokens(LENGTHS))


def test_hypotheses_and_pictures_can_be_picked_and_reordered() -> None:
    model, features, tokens = make_decoder("lstm"), make_features(3), make_tokens([[2, 3], [4, 1], [3, 2]])
    memory = model.encode(features)
    _, state, _ = model.step(tokens[:, :, 0], model.start(memory, 2), memory)
    index = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    words = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    logits, _, _ = model.step(words, state.select(index), memory)
    pictures = torch.tensor([2, 0])
    some, _, _ = model.step(words[pictures], state.select(index).images(pictures), memory.select(pictures))
    torch.testing.assert_close(some, logits.view(3, 3, -1)[pictures].flatten(0, 1))
    for i in range(3):
        for k in range(3):
            one = torch.tensor([i])
            alone, _, _ = model.step(
                words[i, k].view(1, 1), state.images(one).select(index[i, k].view(1, 1)), memory.select(one)
            )
            torch.testing.assert_close(alone[0], logits[3 * i + k])


@pytest.mark.parametrize(("decoder", "attention"), KINDS)
def test_hypotheses_that_do_not_go_on_change_nothing_for_the_others(decoder: str, attention: str) -> None:
    model, features, tokens = make_decoder(decoder, attention), make_features(3), make_tokens([[2, 3], [4, 1], [3, 2]])
    memory = model.encode(features)
    _, state, _ = model.step(tokens[:, :, 0], model.start(memory, 2), memory)
    live = torch.tensor([1, 2, 5])
    expected, all_states, all_weights = model.step(tokens[:, :, 1], state, memory)
    logits, states, weights = model.step(tokens[:, :, 1], state, memory, live)
    torch.testing.assert_close(logits, expected[live])
    torch.testing.assert_close(weights.flatten(0, 1)[live], all_weights.flatten(0, 1)[live])
    for ours, theirs in zip(states.tensors, all_states.tensors, strict=True):
        torch.testing.assert_close(ours.flatten(0, 1)[live], theirs.flatten(0, 1)[live])


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_grouping_padding_and_order_change_nothing(decoder: str) -> None:
    model, features, lengths = make_decoder(decoder), make_features(3), [[3, 5, 1], [6, 2, 4], [2, 2, 7]]
    tokens = make_tokens(lengths)
    expected = by_caption(model(features, tokens))

    padded = torch.cat([F.pad(tokens, (0, 5)), torch.zeros(3, 2, tokens.shape[2] + 5, dtype=torch.int64)], 1)
    order = torch.tensor([2, 0, 1])
    alone = model(features.repeat_interleave(3, 0), tokens.flatten(0, 1).unsqueeze(1))  # K = 1
    shuffled = by_caption(model(features[order], tokens[order].flip(1)))
    for (i, k), logits in expected.items():
        torch.testing.assert_close(by_caption(model(features, padded))[i, k], logits)
        torch.testing.assert_close(by_caption(alone)[3 * i + k, 0], logits)
        torch.testing.assert_close(shuffled[order.tolist().index(i), 2 - k], logits)


def test_any_float_type_of_features() -> None:
    model, features, tokens = make_decoder().float(), make_features(2).half(), make_tokens([[2], [3]])
    torch.testing.assert_close(model(features, tokens).logits, model(features.float(), tokens).logits)


def test_frozen_and_tuned_word_vectors() -> None:
    tokens, features = make_tokens([[2], [3]]), make_features(2)
    for tuned in (False, True):
        model = make_decoder(tune_embeddings=tuned)
        model(features, tokens).logits.sum().backward()
        assert (model.embedding.weight.grad is not None) == tuned


def test_dropout_only_while_training() -> None:
    model, tokens, features = make_decoder(dropout=0.5), make_tokens([[2], [3]]), make_features(2)
    model.eval()
    assert torch.equal(model(features, tokens).logits, model(features, tokens).logits)
    model.train()
    assert not torch.equal(model(features, tokens).logits, model(features, tokens).logits)
    torch.manual_seed(3)
    first = model(features, tokens).logits
    torch.manual_seed(3)
    assert torch.equal(model(features, tokens).logits, first)


def test_positions_tell_cells_apart() -> None:
    """Without positions a picture whose cells are shuffled is the same picture."""
    tokens, features = make_tokens([[4]]), make_features(1)
    shuffled = features[:, torch.tensor([3, 1, 5, 0, 2, 4])]
    for position, same in (("none", True), ("learned", False), ("sinusoidal", False)):
        model = make_decoder(position=position)
        assert torch.allclose(model(features, tokens).logits, model(shuffled, tokens).logits) == same


def test_sinusoidal_positions_need_a_size_of_sines_and_cosines() -> None:
    with pytest.raises(CaptionerError, match="train.feature_size=10: .* a multiple of 4"):
        make_decoder(position="sinusoidal", feature_size=10).encode(make_features(1))


def test_memory_is_shared_by_hypotheses() -> None:
    model = make_decoder()
    memory = model.encode(make_features(2))
    assert memory.values.shape[0] == memory.keys.shape[0] == 2
    state = model.start(memory, 50)
    assert all(tensor.shape == (2, 50, 10) for tensor in state.tensors)
    assert memory.first(1).values.data_ptr() == memory.values.data_ptr()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CaptionerError, match="decoder=transformer.*gru, lstm"):
        make_decoder("transformer")
    with pytest.raises(CaptionerError, match="attention=loud.*soft, hard, dot, multihead, bilinear, none"):
        make_decoder("gru", "loud")
    with pytest.raises(CaptionerError, match="train.heads=4: it does not divide train.attention_size=6"):
        make_decoder("gru", "multihead", heads=4)


def test_a_batch_without_captions_is_refused() -> None:
    with pytest.raises(ValueError, match="without a token"):
        make_decoder()(
            torch.zeros(1, POSITIONS, CHANNELS, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.int64)
        )


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_learns_eight_captions_by_heart(decoder: str) -> None:
    model, features, tokens = (
        make_decoder(decoder, hidden_size=32, feature_size=16).float(),
        make_features(4),
        make_tokens([[3, 5], [6, 2], [4, 7], [1, 5]]),
    )
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], 0.02)
    for _ in range(150):
        outputs = model(features, tokens)
        loss = F.cross_entropy(outputs.logits, outputs.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # the first word of two captions of one picture cannot be known: ln 2 a caption at least
    assert loss.item() < 8 * 0.6931 / outputs.targets.numel() + 0.01
