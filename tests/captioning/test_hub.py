"""Models shared by folder and by the Hugging Face hub, the latter played by a small server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from captioner.captioning import Captioner
from captioner.captioning.copy import copy_model
from captioner.errors import CaptionerError
from captioner.model_io import CONFIG, ENCODER, WEIGHTS
from tests.captioning import small
from tests.model_files import replace_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys
from captioner import Captioner
from captioner.errors import CaptionerError
try:
    with Captioner.from_pretrained(sys.argv[1], device="cpu", cache_dir=sys.argv[2]) as captioner:
        print(captioner.caption(sys.argv[3])[0].text)
except CaptionerError as error:
    print("Error:", error.message)
"""


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[-1]
        found, headers = None, {"X-Repo-Commit": COMMIT}
        if path.startswith("/api/models/ann/photos"):
            facts = {"id": "ann/photos", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.files.items()
            ]
            found = json.dumps(tree if "/tree/" in path else facts).encode()
            headers["Content-Type"] = "application/json"
        elif path.startswith("/ann/photos/resolve/") and name in self.files:
            self.asked.append(name)
            found = self.files[name]
            headers["ETag"] = f'"{hashlib.sha256(found).hexdigest()}"'
        self.send_response(404 if found is None else 200)
        for key, value in {**headers, "Content-Length": str(len(found or b""))}.items():
            self.send_header(key, value)
        if found is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if with_body and found:
            self.wfile.write(found)


@pytest.fixture
def hub() -> Iterator[type[_Hub]]:
    handler = type("Hub", (_Hub,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler
        server.shutdown()


def from_hub(hub: type[_Hub], name: str, cache: Path, image: Path) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(cache), str(image)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_is_saved_to_a_folder_and_loaded_from_it(
    run: dict[str, Path], captioner: Captioner, tmp_path: Path
) -> None:
    captioner.save_pretrained(tmp_path / "saved")
    assert sorted(content(tmp_path / "saved")) == ["README.md", CONFIG, WEIGHTS]
    card = (tmp_path / "saved/README.md").read_text()
    assert "library_name: captioner" in card and "squeezenet1_1" in card and "pipeline_tag: image-to-text" in card
    with Captioner.from_pretrained(tmp_path / "saved", device="cpu") as again:
        images = sorted(run["files"].iterdir())[:3]
        assert [row.captions for row in again.caption(images)] == [row.captions for row in captioner.caption(images)]


def test_a_model_comes_from_the_hub_without_its_other_files(
    hub: type[_Hub], run: dict[str, Path], captioner: Captioner, tmp_path: Path
) -> None:
    captioner.save_pretrained(tmp_path / "saved")
    hub.files = {**content(tmp_path / "saved"), "pytorch_model.bin": b"a pickle"}
    image = run["files"] / "00.jpg"
    assert from_hub(hub, "ann/photos", tmp_path / "cache", image) == captioner.caption(image)[0].text
    assert set(hub.asked) == {CONFIG, WEIGHTS}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("nothing", "no config.json, so it is no model of this program"),  # a pickle alone
        ("torn weights", "model.safetensors: damaged or of another model"),
        ("torn config", "neither a folder nor a model that could be fetched"),
        ("no such repository", "ann/nothing: neither a folder nor a model that could be fetched"),
    ],
)
def test_hub_faults_are_one_line(
    hub: type[_Hub], run: dict[str, Path], tmp_path: Path, damage: str, words: str
) -> None:
    files = content(run["models"])
    if damage == "nothing":
        files = {"pytorch_model.bin": b"a pickle"}
    elif damage != "no such repository":
        name = WEIGHTS if damage == "torn weights" else CONFIG
        files[name] = files[name][:-100]
    hub.files = files
    name = "ann/nothing" if damage == "no such repository" else "ann/photos"
    told = from_hub(hub, name, tmp_path / "cache", run["files"] / "00.jpg")
    assert told.startswith("Error: ") and words in told and "\n" not in told


def test_half_precision_halves_the_file_and_rounds_each_weight(run: dict[str, Path], tmp_path: Path) -> None:
    copy_model(run["models"], tmp_path / "half", half=True)
    whole, half = (load_file(folder / WEIGHTS) for folder in (run["models"], tmp_path / "half"))
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in whole.items())
    sizes = [(folder / WEIGHTS).stat().st_size for folder in (run["models"], tmp_path / "half")]
    assert sizes[1] < 0.55 * sizes[0]
    with Captioner.load(tmp_path / "half", "cpu") as captioner:
        assert {parameter.dtype for parameter in captioner.model.decoder.parameters()} == {torch.float32}
        assert captioner.caption(run["files"] / "00.jpg")[0].text

    weights = load_file(run["models"] / WEIGHTS)
    name = next(iter(weights))
    weights[name] = weights[name] + 1e6
    large = small.copy(run, tmp_path / "large")
    replace_weights(large, weights)
    with pytest.raises(CaptionerError, match="too large for half precision"):
        copy_model(large, tmp_path / "never", half=True)
    assert not (tmp_path / "never").exists()


def test_the_encoders_weights_of_the_user_travel_along(run: dict[str, Path], tmp_path: Path) -> None:
    source = small.copy(run, tmp_path / "source")
    config = json.loads((source / CONFIG).read_text())
    (source / CONFIG).write_text(json.dumps({**config, "weights_name": "file"}))
    (source / ENCODER).write_bytes(b"weights")
    copy_model(source, tmp_path / "copy")
    assert (tmp_path / "copy" / ENCODER).read_bytes() == b"weights"
