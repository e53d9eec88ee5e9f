"""Extraction: resuming, faults, devices and precisions, kills, full disks."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from captioner.device import resolve_device
from captioner.errors import CaptionerError
from captioner.features import blocks, decoding
from captioner.features.encoders import build_encoder
from captioner.features.extract import extract
from captioner.features.forward import ImageEncoder, resolve_precision
from captioner.features.layout import Layout
from captioner.features.preprocess import Preprocessing
from captioner.features.store import FeatureStore
from captioner.images.store import ImageStore, write_images
from tests.features.conftest import ENCODER, image, jpeg, make_images_file, program, quick, run, runtime


def test_finished_work_is_not_done_again(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "f.h5"
    extract(quick(), runtime(), ENCODER, images, out)
    before = out.stat().st_mtime_ns
    extract(quick(), runtime(), ENCODER, images, out)
    assert out.stat().st_mtime_ns == before and "already there" in capsys.readouterr().err
    extract(quick(fit="crop"), runtime(), ENCODER, images, out)
    assert FeatureStore.open(out).preprocessing["fit"] == "crop"


def test_changed_images_start_afresh(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "f.h5"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("captioner.features.extract.extract_blocks", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        extract(quick(), runtime(), ENCODER, images, out)
    assert not out.exists() and (tmp_path / "f.h5.partial" / "features.h5").exists()
    (tmp_path / "scenes").mkdir()
    other = make_images_file(tmp_path / "scenes" / "images.h5", 5)
    extract(quick(), runtime(), ENCODER, other, out)
    assert "unfinished work was for other images" in capsys.readouterr().err
    assert FeatureStore.open(out).shape[0] == 5


def test_undecodable_image_is_named(tmp_path: Path) -> None:
    records = [(number, jpeg(image(number)), 64, 80) for number in range(12)]
    records[9] = (9, b"\xff\xd8 no image", 64, 80)
    write_images(tmp_path / "images.h5", records)
    with pytest.raises(CaptionerError, match=r"images.h5: image 9 cannot be decoded"):
        extract(quick(), runtime(), ENCODER, tmp_path / "images.h5", tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_non_finite_feature_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    encode = ImageEncoder.encode

    def spoilt(self: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
        features = encode(self, images).float()
        if len(images) == 5:  # the last block, rows 16 to 20
            features[2, 4, 7] = value  # 1e6 is beyond float16
        return features.half()

    monkeypatch.setattr(ImageEncoder, "encode", spoilt)
    with pytest.raises(
        CaptionerError, match=r"squeezenet1_1 makes non-finite features of image 1054 \(view 0\).*extract.precision"
    ):
        extract(quick(), runtime(), ENCODER, images, tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
    assert (
        Layout(tmp_path / "f.h5.partial" / "features.h5").done.tolist() == [True] * 16 + [False] * 5
    )  # what was sound is kept


def test_finite_check_sees_every_kind_of_bits() -> None:
    values = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)
    for value in values[::13]:
        assert blocks.all_finite(np.array([1, value, 2], np.float16)) == bool(np.isfinite(value))


def test_death_of_a_decoding_process_is_an_error(images: Path) -> None:
    store = ImageStore.open(images)
    with decoding.JpegPipeline(store, Preprocessing(image_size=64), 1, 8, 1) as pipeline:
        pipeline._processes[0].kill()
        pipeline._processes[0].wait()
        pipeline.submit(0, 0, 8)
        with pytest.raises(CaptionerError, match="decoding process.* ended before"):
            pipeline.wait(0)


def test_bundled_weights_warn_on_other_data_sets(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from captioner.features.bundled import weights_path

    if not weights_path().exists():
        pytest.skip("no bundled weights in this checkout")
    extract(quick(weights="bundled"), runtime(), ENCODER, images, tmp_path / "a.h5")
    assert "warning" not in capsys.readouterr().err
    extract(quick(weights="bundled"), runtime(), ENCODER, images, tmp_path / "b.h5", dataset="flickr8k")
    assert "warning: the bundled weights were trained on drawn scenes; on flickr8k" in capsys.readouterr().err
    assert FeatureStore.open(tmp_path / "b.h5").weights_name == "bundled"
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_devices_and_precisions() -> None:
    cpu = torch.device("cpu")
    assert (
        resolve_device("cpu") == cpu
        and resolve_precision("fp32", cpu) == "fp32"
        and resolve_precision("auto", cpu) in ("fp32", "bf16")
    )
    for device in ("gpu", "cuda:99", "mps"):
        with pytest.raises(CaptionerError, match=f"runtime.device={device}"):
            resolve_device(device)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_are_close(images: Path, tmp_path: Path, plain: Path, precision: str) -> None:
    extract(quick(precision=precision), runtime(), ENCODER, images, tmp_path / "f.h5")
    exact, lower = (FeatureStore.open(path).reader().read(np.arange(21)).float() for path in (plain, tmp_path / "f.h5"))
    assert not torch.equal(exact, lower)
    assert float((exact - lower).norm() / exact.norm()) < 0.03


def test_casting_the_weights_once_is_what_autocast_does(images: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    ours = ImageEncoder(build_encoder(ENCODER, seed=3), torch.device("cpu"), "bf16")
    result = ours(images)
    plain = build_encoder(ENCODER, seed=3).to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = plain(ours.normalise(torch.from_numpy(images)))
    assert torch.equal(result, expected.half())


def test_stop_signal_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    images = make_images_file(tmp_path / "images.h5", 500)
    command, environment = program(images, tmp_path / "f.h5", sync=0.05, batch_size=2, image_size=224)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "f.h5.partial" / "features.h5"
    _await(lambda: partial.exists() and Layout(partial).done.any())
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "everything finished is saved" in message
    done = int(Layout(partial).done.sum())
    assert 0 < done < 500
    finished = run(command, environment)
    assert finished.returncode == 0 and "going on with unfinished work" in finished.stderr
    assert f"500 images, {done} done before" in finished.stderr


def test_second_process_is_refused(tmp_path: Path) -> None:
    images = make_images_file(tmp_path / "images.h5", 1500)
    command, environment = program(images, tmp_path / "f.h5", batch_size=2, image_size=224)
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        _await((tmp_path / "f.h5.partial" / "features.h5").exists)
        with pytest.raises(CaptionerError, match=f"process {first.pid} is at work on it"):
            extract(quick(batch_size=2, image_size=224), runtime(), ENCODER, images, tmp_path / "f.h5")
    finally:
        first.kill()
        first.wait()


def _await(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.02)


def _kill_and_resume(tmp_path: Path, kills: int, count: int, seed: int) -> None:
    images = make_images_file(tmp_path / "images.h5", count)
    options = {"sync": 0.05, "batch_size": 2, "image_size": 160, "views": 2}
    command, environment = program(images, tmp_path / "whole.h5", **options)
    assert run(command, environment).returncode == 0
    command, environment = program(images, tmp_path / "killed.h5", **options)
    generator, partial, done, survived = (
        np.random.default_rng(seed),
        tmp_path / "killed.h5.partial" / "features.h5",
        0,
        0,
    )
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        if generator.random() < 0.7:  # most kills while rows are computed, some at any instant of the start
            while not (partial.exists() and Layout(partial).done.sum() > done) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.5))
        else:
            time.sleep(generator.uniform(0, 4))
        process.kill()
        message = process.communicate(timeout=60)[1]
        assert process.returncode == -signal.SIGKILL, message
        survived += 1
        if partial.exists():
            now = int(Layout(partial).done.sum())
            assert now >= done and (
                f"{done} done before" in message or "images, " not in message or done == 0
            )  # finished work is not done again
            done = now
    assert survived == kills
    finished = run(command, environment)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_killed_three_times(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, 3, 400, 1)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, 20, 3000, 2)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = []
    for count in (100, 2000):
        images = make_images_file(tmp_path / f"{count}.h5", count)
        command, environment = program(images, tmp_path / f"features{count}.h5", memory=True)
        finished = run(command, environment)
        assert finished.returncode == 0, finished.stderr
        peaks.append(int(finished.stdout.split()[-1]) / 1024)  # MB
    assert peaks[1] < peaks[0] + 60 and peaks[1] < 2000, peaks


def test_disk_too_small_is_said_before_any_work(images: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        with pytest.raises(CaptionerError, match=r"features need 0\.\d+ GB and the disk has 0\.000 GB free"):
            extract(quick(), runtime(), ENCODER, images, tmp_path / "f.h5")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_read_only_folder(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CaptionerError, match="cannot be written"):
        extract(quick(), runtime(), ENCODER, images, tmp_path / "file" / "f.h5")


def test_chunked_reference_reads_the_same(plain: Path) -> None:
    """The published file is an ordinary HDF5 file."""
    store = FeatureStore.open(plain)
    with h5py.File(plain, "r") as file:
        np.testing.assert_array_equal(file["features"][4, 2], store.reader().read([4], [2])[0].numpy())
