"""Section ``runtime`` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.parameters.options import option


@dataclass(frozen=True)
class RuntimeParameters:
    """Settings that cannot change a result: no stage depends on this section and no fingerprint contains it."""

    device: str = option("auto", "cpu, cuda, cuda:N; auto: a GPU where there is one")
    workers: int = option(0, "processes that decode images; 0: one per core beside a GPU, at most 16", low=0, high=256)
    threads: int = option(0, "CPU threads of each process; 0: an equal part of the cores", low=0, high=1024)
    features_on: str = option(
        "auto",
        "where training reads features from: gpu or ram (whole file in memory), disk; auto: the first that fits",
        choices=("auto", "gpu", "ram", "disk"),
    )
    checkpoint_seconds: float = option(60.0, "training: seconds between checkpoints within an epoch", low=0)
    download_cache: str = option("~/.cache/captioner", "folder where downloaded archives are kept")
    retries: int = option(5, "attempts for each download before it fails", low=1, high=100)
    timeout: float = option(30.0, "seconds without a byte before a download attempt fails", low=0.1)
    connections: int = option(16, "images downloaded at once (download.from=urls)", low=1, high=256)
    processes: int = option(
        0, "processes of extraction and of training on one machine; 0: one per GPU, one on a CPU", low=0, high=64
    )
