"""Checkpoints: whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from captioner.decoder import DecoderConfig, build_decoder
from captioner.errors import CaptionerError
from captioner.training.checkpoint import (
    TrainState,
    load_checkpoint,
    optimizer_tensors,
    read_state,
    restore_optimizer,
    save_checkpoint,
    trained_weights,
    write_state,
)
from captioner.training.distributed import Group


def test_a_file_comes_back_exactly(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    tensors = {"a.b": torch.randn(3, 2), "random": torch.get_rng_state(), "step": torch.tensor(3.0)}
    state = {"sum": 0.1 + 0.2, "rows": [{"x": 1e-300}], "none": None}
    write_state(tmp_path, "1", tensors, state)
    found, found_state = read_state(tmp_path)
    assert found_state == state and set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_two_are_kept_and_a_damaged_one_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(4):
        write_state(tmp_path, f"{number:03d}", {"x": torch.full((100,), float(number))}, {"number": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["002.state", "003.state"]
    newest = tmp_path / "003.state"
    whole = newest.read_bytes()
    for damage in (whole[:-7], whole[:40], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        newest.write_bytes(damage)
        (tmp_path / "004.state.99.tmp").write_bytes(whole)  # what a kill leaves of an unfinished one
        assert read_state(tmp_path)[1] == {"number": 2}
        assert "003.state: a damaged checkpoint" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["002.state"]


def test_a_full_disk_is_one_line_and_keeps_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path, "1", {"x": torch.zeros(1)}, {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("captioner.training.checkpoint.write_atomically", full)
    with pytest.raises(CaptionerError, match="2.state: the checkpoint cannot be saved .No space left"):
        write_state(tmp_path, "2", {"x": torch.zeros(1)}, {})
    assert read_state(tmp_path) is not None


def make_decoder(hidden_size: int = 6) -> torch.nn.Module:
    torch.manual_seed(0)
    config = DecoderConfig(
        "lstm", "soft", 9, 3, 4, 4, feature_size=5, hidden_size=hidden_size, attention_size=3, norm="batch"
    )
    return build_decoder(config)


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    """Progress, schedules, tensors and the random generator, in one file."""
    decoder, group = make_decoder(), Group()
    assert load_checkpoint(tmp_path, decoder, group, seed=1) is None
    state = TrainState(3, 7, 1, 2, 40, [0.1 + 0.2, 1e-300], 0.7, 5, [{"epoch": 1, "x": 1 / 3}], [0.25], 1, "")
    schedules = {"early_stopping": {"best": None, "waited": 2}, "plateaus": {"a": {"scale": 0.5}}}
    parts = {
        "weights": trained_weights(decoder),
        "best": {"norm.weight": torch.randn(5)},
        "objective": {"baseline": torch.tensor(-1.5, dtype=torch.float64)},
    }
    torch.manual_seed(5)
    save_checkpoint(tmp_path, state, schedules, parts, group)
    assert [path.name for path in tmp_path.iterdir()] == ["000003-000000007.state"]
    drawn = torch.rand(3)
    torch.manual_seed(6)
    found, found_schedules, found_parts = load_checkpoint(tmp_path, decoder, group, seed=1)
    assert torch.equal(torch.rand(3), drawn)
    assert found == state and found_schedules == schedules and found_parts.keys() == parts.keys()
    for name, members in parts.items():
        assert found_parts[name].keys() == members.keys()
        for key, tensor in members.items():
            assert torch.equal(found_parts[name][key], tensor) and found_parts[name][key].dtype == tensor.dtype


def test_running_statistics_are_trained_and_frozen_vectors_are_not() -> None:
    decoder = make_decoder()
    names = set(trained_weights(decoder))
    assert {"norm.running_mean", "norm.running_var", "norm.weight", "position"} <= names
    assert names == set(decoder.state_dict()) - {"embedding.weight", "norm.num_batches_tracked"}


def test_a_checkpoint_of_other_layers_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_checkpoint(tmp_path, TrainState(), {}, {"weights": trained_weights(make_decoder())}, Group())
    assert load_checkpoint(tmp_path, make_decoder(), Group(), 1) is not None
    assert load_checkpoint(tmp_path, make_decoder(hidden_size=7), Group(), 1) is None
    assert "other layers; starting afresh" in capsys.readouterr().err


def test_optimizer_state_comes_back() -> None:
    def make() -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        parameters = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
        return parameters, torch.optim.Adam(
            [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.1}], fused=True
        )

    def step(parameters: list[torch.Tensor], optimizer: torch.optim.Optimizer, factor: float) -> None:
        for parameter in parameters:
            parameter.grad = factor * torch.arange(1.0, len(parameter) + 1)
        optimizer.step()

    first, optimizer = make()
    step(first, optimizer, 1.0)
    second, other = make()
    for one, two in zip(first, second):
        two.data.copy_(one.data)
    restore_optimizer(other, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    step(first, optimizer, -0.3)
    step(second, other, -0.3)
    assert all(torch.equal(one, two) for one, two in zip(first, second))
