"""The transformer against torch's own, in float64; its cached steps against teacher forcing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.batches import inputs_and_targets
from captioner.cuda_graphs import replaced, tensors_of
from captioner.decoder import DecoderConfig
from captioner.decoder.transformer import TransformerDecoder, TransformerLayer, TransformerState
from captioner.errors import CaptionerError
from captioner.search import BeamStrategy, Constraints, Ensemble, beam_search, search
from captioner.vocabulary.vocabulary import PAD, START
from tests.decoder import examples
from tests.decoder.comparing import (
    TeacherForcing,
    assert_learns_by_heart,
    assert_steps_are_teacher_forcing,
    by_caption,
    teacher_forced,
)
from tests.decoder.examples import CHANNELS, POSITIONS, VOCABULARY, make_features, make_tokens
from tests.search.real_decoders import random_features, sharp_decoder, stepped_log_probabilities

LENGTHS = [[3, 5, 1, 4], [6, -1, 2, 2], [1, 0, -1, -1]]  # ragged, with missing captions and an empty one
SIZE = 12
SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "three layers of three heads": {"layers": 3, "heads": 3},
    "sinusoidal words": {"word_position": "sinusoidal", "layers": 2},
    "features as wide": {"feature_size": SIZE, "layers": 2},
    "tied and mapped": {"tie_weights": True, "vector_size": 7, "layers": 2},
    "batch norm, sinusoidal grid": {"norm": "batch", "position": "sinusoidal"},
}


def make_decoder(seed: int = 0, **changes: Any) -> TransformerDecoder:
    model = examples.make_decoder("transformer", seed=seed, **{"hidden_size": SIZE, "heads": 2, **changes})
    assert isinstance(model, TransformerDecoder)
    return model


def torchs(model: TransformerDecoder) -> nn.TransformerDecoder:
    """``torch.nn.TransformerDecoder`` with the weights of ``model``."""
    config = model.config
    size, heads = config.hidden_size, config.heads
    layer = nn.TransformerDecoderLayer(size, heads, 4 * size, 0.0, "gelu", batch_first=True, norm_first=True)
    found = nn.TransformerDecoder(layer, config.layers, norm=nn.LayerNorm(size)).double()
    for theirs, ours in zip(found.layers, model.layers, strict=True):
        if config.feature_size != size:
            attention = nn.MultiheadAttention(
                size, heads, kdim=config.feature_size, vdim=config.feature_size, batch_first=True
            )
            theirs.multihead_attn = attention.double()
        copy_layer(theirs, ours)
    found.norm.load_state_dict(model.output_norm.state_dict())
    return found.eval()


@torch.no_grad()
def copy_layer(theirs: Any, ours: TransformerLayer) -> None:
    own, cross = theirs.self_attn, theirs.multihead_attn
    own.in_proj_weight.copy_(ours.self_input.weight)
    own.in_proj_bias.copy_(ours.self_input.bias)
    keys, values = ours.cross_input.weight.chunk(2)
    if cross.in_proj_weight is None:
        cross.q_proj_weight.copy_(ours.cross_query.weight)
        cross.k_proj_weight.copy_(keys)
        cross.v_proj_weight.copy_(values)
    else:
        cross.in_proj_weight.copy_(torch.cat([ours.cross_query.weight, keys, values]))
    cross.in_proj_bias.copy_(torch.cat([ours.cross_query.bias, ours.cross_input.bias]))
    for their, own_part in (
        (own.out_proj, ours.self_output),
        (cross.out_proj, ours.cross_output),
        (theirs.linear1, ours.inner),
        (theirs.linear2, ours.outer),
        (theirs.norm1, ours.self_norm),
        (theirs.norm2, ours.cross_norm),
        (theirs.norm3, ours.inner_norm),
    ):
        their.load_state_dict(own_part.state_dict())


def torchs_logits(model: TransformerDecoder, features: Tensor, caption: Tensor, batch: Tensor) -> Tensor:
    """Logits (T, V) of one caption (T,) of one image (P, C) of a batch, by torch's decoder; loops of the equations."""
    config, length = model.config, len(caption)
    projected = model.norm(batch @ model.projection.weight.T + model.projection.bias)
    row = next(number for number, image in enumerate(batch) if torch.equal(image, features))
    memory = projected[row]
    if config.position == "learned":
        memory = memory + model.position
    else:
        half = config.feature_size // 2
        columns = config.positions // config.rows
        grid = [
            torch.cat([sines(cell // columns, half), sines(cell % columns, half)]) for cell in range(config.positions)
        ]
        memory = memory + torch.stack(grid)
    words = model.word(model.embedding_map(model.embedding(caption)))
    if config.word_position == "learned":
        words = words + model.word_position[:length]
    else:
        words = words + torch.stack([sines(number, config.hidden_size) for number in range(length)])
    mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    output = torchs(model)(words.unsqueeze(0), memory.unsqueeze(0), tgt_mask=mask)[0]
    if config.tie_weights:
        return model.output_map(output) @ model.embedding.weight.T + model.tied_bias
    return model.vocabulary(output)


def sines(index: int, size: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5."""
    angles = [torch.tensor(index / 10000 ** (i // 2 * 2 / size), dtype=torch.float64) for i in range(size)]
    return torch.stack([angle.cos() if i % 2 else angle.sin() for i, angle in enumerate(angles)])


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_teacher_forcing_is_torchs_decoder(shape: str) -> None:
    model, features, tokens = make_decoder(**SHAPES[shape]), make_features(3), make_tokens(LENGTHS)
    found, count = by_caption(teacher_forced(model, features, tokens).logits, tokens), 0
    for (i, k), logits in found.items():
        caption = tokens[i, k][tokens[i, k] != PAD][:-1]
        expected = torchs_logits(model, features[i], caption, features)
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
        count += 1
    assert count == 9


@torch.no_grad()
def test_attention_is_the_last_layers() -> None:
    """The mean of its heads, as torch gives it."""
    model, features, tokens = make_decoder(layers=2), make_features(1), make_tokens([[5]])
    seen: list[Tensor] = []
    decoder = torchs(model)
    for layer in decoder.layers:
        layer.multihead_attn.register_forward_pre_hook(
            lambda _, arguments, options: (arguments, {**options, "need_weights": True}), with_kwargs=True
        )
        layer.multihead_attn.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    inputs, _ = inputs_and_targets(tokens)
    words = model.word(model.embedding(inputs[0])) + model.word_position[:6]
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    decoder(words, model.project(features), tgt_mask=mask)
    _, attention = model(model.encode(features), inputs)
    assert len(seen) == 2 and attention.shape == (1, 1, 6, POSITIONS)
    torch.testing.assert_close(attention[0], seen[1], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(attention[0], seen[0])


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_cached_steps_are_teacher_forcing(shape: str) -> None:
    model = make_decoder(**SHAPES[shape]).eval()
    assert_steps_are_teacher_forcing(model, make_features(3), make_tokens(LENGTHS))


@pytest.mark.parametrize("fixed", [True, False])
@torch.no_grad()
def test_a_cache_with_room_for_all_words_gives_the_same(fixed: bool) -> None:
    """As a GPU has it: every step has one shape, and what a state is made of can be taken apart and put together."""
    model, features, tokens = make_decoder(layers=2, max_length=9), make_features(2), make_tokens([[9, 3], [4, 6]])
    outputs = teacher_forced(model, features, tokens)
    memory = model.encode(features)
    state, logits, shapes = model.initial_state(memory, 2, fixed_shapes=fixed), [], set()
    for step in range(10):
        state = replaced(state, [tensor.clone() for tensor in tensors_of(state)])
        shapes.add(tuple(tensor.shape for tensor in tensors_of(state)))
        kept = [tensor.clone() for tensor in tensors_of(state)]
        found, after, _ = model.step(tokens[:, :, step], state, memory)
        assert all(map(torch.equal, kept, tensors_of(state)))  # a step leaves what the last one returned
        logits.append(found)
        state = after
    assert len(shapes) == (1 if fixed else 10) and int(state.count) == 10
    for (i, k), expected in by_caption(outputs.logits, tokens).items():
        together = torch.stack([found[i, k] for found in logits[: len(expected)]])
        torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fixed", [True, False])
@torch.no_grad()
def test_beams_and_images_can_be_selected_and_reordered(fixed: bool) -> None:
    model, features, tokens = make_decoder(layers=2), make_features(3), make_tokens([[2, 3], [4, 1], [3, 2]])
    memory = model.encode(features)
    _, state, _ = model.step(tokens[:, :, 0], model.initial_state(memory, 2, fixed_shapes=fixed), memory)
    _, state, _ = model.step(tokens[:, :, 1], state, memory)  # here the beams of an image differ
    parents = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    words = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    logits, _, _ = model.step(words, state.reorder(parents), memory)
    images = torch.tensor([2, 0])
    some, _, _ = model.step(words[images], state.reorder(parents).select(images), memory.select(images))
    torch.testing.assert_close(some, logits[images])
    for i in range(3):
        for k in range(3):  # without a cache, from START
            caption = torch.cat([tokens[i, parents[i, k], :2], words[i, k].view(1)])
            expected, _ = model(model.encode(features[i : i + 1]), caption.view(1, 1, 3))
            torch.testing.assert_close(logits[i, k], expected[-1], rtol=1e-10, atol=1e-12)


def test_gradients_numerically() -> None:
    model, tokens = make_decoder(layers=2, tune_embeddings=True, hidden_size=4, feature_size=4), make_tokens([[2, 1]])
    function = TeacherForcing(model)
    names, parameters = zip(*function.named_parameters())
    for parameter in parameters:
        parameter.data *= 0.5

    def loss(features: Tensor, *values: Tensor) -> Tensor:
        outputs = torch.func.functional_call(function, dict(zip(names, values)), (features, tokens))
        return F.cross_entropy(outputs.logits, outputs.targets) + (outputs.attention**2).sum()

    inputs = [
        make_features(1).requires_grad_(),
        *(parameter.detach().clone().requires_grad_() for parameter in parameters),
    ]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_every_parameter_is_trained_and_frozen_words_are_not() -> None:
    """Several ranks need every gradient."""
    for tuned in (True, False):
        model = make_decoder(layers=2, tune_embeddings=tuned)
        outputs = teacher_forced(model, make_features(3), make_tokens(LENGTHS))
        F.cross_entropy(outputs.logits, outputs.targets).backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == (set() if tuned else {"embedding.weight"})


def test_padding_changes_nothing() -> None:
    model, features, tokens = make_decoder(layers=2), make_features(3), make_tokens(LENGTHS)
    padded = torch.cat([F.pad(tokens, (0, 5)), torch.zeros(3, 2, tokens.shape[2] + 5, dtype=torch.int64)], 1)
    gradients = []
    for given in (tokens, padded):
        model.zero_grad()
        outputs = teacher_forced(model, features, given)
        F.cross_entropy(outputs.logits, outputs.targets, reduction="sum").backward()
        trained = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        gradients.append([outputs.logits.detach(), *(gradient.clone() for gradient in trained)])
    assert len(gradients[0][0]) == 33
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_logits_of_chosen_tokens() -> None:
    model, tokens = make_decoder(), make_tokens(LENGTHS)
    inputs, _ = inputs_and_targets(tokens)
    memory = model.encode(make_features(3))
    everything, attention = model(memory, inputs, torch.arange(inputs.numel()))
    assert everything.shape == (inputs.numel(), VOCABULARY) and attention.shape == (*inputs.shape, POSITIONS)
    torch.testing.assert_close(model(memory, inputs)[0], everything[inputs.flatten() != PAD])
    index = torch.tensor([9, 0, 4, 4])
    torch.testing.assert_close(model(memory, inputs, index)[0], everything[index])


@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_without_captions(images: int) -> None:
    """A rank that has no image or no caption does its passes all the same."""
    model = make_decoder(layers=2)
    features = torch.zeros(images, POSITIONS, CHANNELS, dtype=torch.float64)
    outputs = teacher_forced(model, features, torch.zeros(images, 2, 4, dtype=torch.int64))
    assert outputs.logits.shape == (0, VOCABULARY) and outputs.attention.shape == (images, 2, 3, POSITIONS)
    outputs.logits.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


def test_captions_of_an_image_share_its_keys() -> None:
    model = make_decoder(layers=2)
    memory = model.encode(make_features(2))
    assert [keys.shape for keys in memory.keys] == [(2, 2, POSITIONS, SIZE // 2)] * 2
    assert [values.shape for values in memory.values] == [(2, 2, POSITIONS, SIZE // 2)] * 2
    state = model.initial_state(memory, 50)
    assert isinstance(state, TransformerState) and state.keys[1].shape == (2, 50, 2, 0, SIZE // 2)


@torch.no_grad()
def test_positions_of_words_tell_orders_apart() -> None:
    """The last word sees the words before it as a set, but for their positions."""
    features, tokens = make_features(1), torch.tensor([[[START, 5, 6, 7]]])
    swapped = torch.tensor([[[START, 6, 5, 7]]])
    found = {}
    for position in ("learned", "sinusoidal", "zero"):
        model = make_decoder(word_position="learned" if position == "zero" else position)
        if position == "zero":
            model.word_position.zero_()
        memory = model.encode(features)
        found[position] = model(memory, tokens)[0][-1]
        assert torch.allclose(found[position], model(memory, swapped)[0][-1]) == (position == "zero")
    assert not torch.allclose(found["learned"], found["sinusoidal"])


def test_dropout_only_while_training() -> None:
    model, tokens, features = make_decoder(dropout=0.5), make_tokens([[2], [3]]), make_features(2)
    first, second = (teacher_forced(model, features, tokens).logits for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(*(teacher_forced(model, features, tokens).logits for _ in range(2)))


def test_learns_eight_captions_by_heart() -> None:
    model = make_decoder(hidden_size=32, feature_size=16, heads=4, layers=2)
    for layer in model.modules():  # torch's first weights, not the large ones of the comparisons
        if isinstance(layer, (nn.Linear, nn.LayerNorm)):
            layer.reset_parameters()
    assert_learns_by_heart(model, 0.003)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "dot"}, "attention=dot: decoder=transformer has .* leave attention=soft"),
        ({"attention": "hard"}, "attention=hard: decoder=transformer"),
        ({"heads": 5}, "train.heads=5: it does not divide train.hidden_size=12"),
        ({"word_position": "loud"}, "train.word_position=loud: .* learned, sinusoidal"),
        ({"word_position": "sinusoidal", "hidden_size": 9, "heads": 3}, "train.hidden_size=9: .* even size"),
        ({"position": "sinusoidal", "feature_size": 10}, "train.feature_size=10: .* a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptionerError, match=message) as error:
        make_decoder(**changes)
    assert "\n" not in error.value.message


def test_captions_longer_than_it_can_give_are_refused() -> None:
    model, features = make_decoder(max_length=7), make_features(2)  # room for START and 7 words
    memory = model.encode(features)
    teacher_forced(model, features, make_tokens([[7], [2]]))
    with pytest.raises(CaptionerError, match="a caption of 8 words: .* at most 7; .* vocab.max_length"):
        model(memory, torch.ones(2, 1, 9, dtype=torch.int64))
    model.eval()
    assert all(len(best.tokens) <= 7 for [best] in beam_search(model, features, 2, max_length=7))
    message = (
        "evaluate.max_length=8: the model gives captions of at most 7 words; lower it to 7, or .*vocab.max_length=8"
    )
    ensemble = Ensemble([examples.make_decoder("gru"), model, make_decoder(max_length=9)])
    for decoder in (model, ensemble):
        with pytest.raises(CaptionerError, match=message):
            beam_search(decoder, features, 2, max_length=8)


def test_settings_of_older_models_have_the_new_ones_by_default() -> None:
    settings = make_decoder().config.to_json()
    assert (settings.pop("word_position"), settings.pop("max_length")) == ("learned", 30)
    assert DecoderConfig.from_json(settings, "config.json") == make_decoder().config
    for name, value in (("word_position", 3), ("max_length", 0), ("max_length", "long")):
        with pytest.raises(CaptionerError, match=f"{name}={value!r} is no usable"):
            DecoderConfig.from_json({**settings, name: value}, "config.json")


@pytest.mark.parametrize("beam", [1, 4])
@torch.no_grad()
def test_scores_of_search_are_those_without_a_cache(beam: int) -> None:
    """Images leave the batch and beams are reordered; each caption is scored again alone."""
    decoder, features = sharp_decoder("transformer", "soft", layers=2), random_features(20)
    found = beam_search(decoder, features, beam, max_length=15, length_normalisation=0.0)
    assert len({best.tokens for [best] in found}) > 5
    for image, [best] in enumerate(found):
        memory = decoder.encode(features[[image]])
        inputs = torch.tensor([[[START, *best.tokens]]])
        rows = decoder(memory, inputs)[0].log_softmax(-1)
        targets = inputs_and_targets(torch.tensor([[[START, *best.tokens, 2]]]))[1].flatten()
        expected = rows.gather(1, targets.unsqueeze(1)).sum()
        assert best.log_probability == pytest.approx(expected.item(), abs=1e-10)


@torch.no_grad()
def test_an_ensemble_with_a_recurrent_decoder() -> None:
    """Probabilities are the means of both, through reordered beams."""
    members = [sharp_decoder("transformer", "soft", layers=2), sharp_decoder("gru", "soft")]
    features = random_features(12)
    found = search(
        Ensemble(members),
        Ensemble(members).encode(features),
        12,
        BeamStrategy(3),
        Constraints(15, 1),
        keep=3,
        attention=True,
    )
    for image, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            rows = [stepped_log_probabilities(member, features[[image]], hypothesis.tokens) for member in members]
            mean = (rows[0].exp() + rows[1].exp()).log() - torch.tensor(2.0, dtype=torch.float64).log()
            tokens = torch.tensor([*hypothesis.tokens, 2])
            expected = mean.gather(1, tokens.unsqueeze(1)).sum().item()
            assert hypothesis.log_probability == pytest.approx(expected, abs=1e-10)
            assert torch.allclose(hypothesis.attention.sum(-1), torch.ones(len(hypothesis.tokens)))
