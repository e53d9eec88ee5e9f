"""Saved states: whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from captioner.errors import CaptionerError
from captioner.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state


def test_a_state_comes_back_exactly(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    tensors = {"a.b": torch.randn(3, 2), "random": torch.get_rng_state(), "step": torch.tensor(3.0)}
    state = {"sum": 0.1 + 0.2, "rows": [{"x": 1e-300}], "none": None}
    save_state(tmp_path, "1", tensors, state)
    found, found_state = load_state(tmp_path)
    assert found_state == state and set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_two_are_kept_and_a_damaged_one_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(4):
        save_state(tmp_path, f"{number:03d}", {"x": torch.full((100,), float(number))}, {"number": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["002.state", "003.state"]
    newest = tmp_path / "003.state"
    whole = newest.read_bytes()
    for damage in (whole[:-7], whole[:40], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        newest.write_bytes(damage)
        (tmp_path / "004.state.99.tmp").write_bytes(whole)  # what a kill leaves of an unfinished one
        assert load_state(tmp_path)[1] == {"number": 2}
        assert "003.state: a damaged training state" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["002.state"]


def test_a_full_disk_is_one_line_and_keeps_the_states_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, "1", {"x": torch.zeros(1)}, {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("captioner.training.checkpoint.write_atomically", full)
    with pytest.raises(CaptionerError, match="2.state: the training state cannot be saved .No space left"):
        save_state(tmp_path, "2", {"x": torch.zeros(1)}, {})
    assert load_state(tmp_path) is not None


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
