"""The encoder at work on one device: bytes of pictures in, float16 features out."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor, nn

from captioner.device import record, warm_up
from captioner.features.encoders import Encoder
from captioner.features.folding import fold_batch_norms
from captioner.features.layout import MEAN, STD

# pictures; their activations stay in a core's cache, which a batch of 32 overruns (squeezenet1_1 loses a quarter)
CPU_BATCH = 4
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto``: bf16 where the processor computes in it (AVX512-BF16, AMX, Ampere and later), else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    capable = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if capable() else "fp32"


def keep_freed_memory() -> None:
    """Let this process keep the memory of one batch for the next one.

    glibc gives blocks of a convolution's size back to the kernel at once, which then has to clear them again for the
    next layer; that costs a sixth of a CPU's time (measured with squeezenet1_1). Every thread keeps an arena of its
    own: memory that another core has in its cache costs more than it saves. Elsewhere than with glibc nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1)):
        mallopt(option, value)


class PictureEncoder:
    """An encoder on a device in a precision.

    Batch normalisations are folded into the convolutions before them, which need not be computed then. Weights of
    convolutions and linear layers are cast once, not at every step as autocast alone would; the results are the same.
    """

    def __init__(self, encoder: Encoder, device: torch.device, precision: str) -> None:
        fold_batch_norms(encoder)
        self.encoder, self.device, self.precision = (
            encoder.to(device=device, memory_format=torch.channels_last),
            device,
            precision,
        )
        self._dtype = _DTYPES[precision]
        if precision == "fp32":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
                False  # what is recorded as fp32 is fp32
            )
        else:
            for module in encoder.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(self._dtype)
        self._recorded: _Recorded | None = None
        self._mean = torch.tensor(MEAN, device=device) * 255
        self._scale = 1 / (torch.tensor(STD, device=device) * 255)

    @torch.inference_mode()
    def normalise(self, pictures: Tensor) -> Tensor:
        """``(B, S, S, 3)`` uint8 on the device -> ``(B, 3, S, S)`` in the encoder's precision, channels last in
        memory."""
        mean, scale = (
            values.repeat(pictures.shape[2]) for values in (self._mean, self._scale)
        )  # of a line (S * 3,): long enough for vector instructions
        lines = pictures.flatten(2)  # (B, S, S * 3)
        if self.device.type == "cpu":
            normalised, scratch = torch.empty(lines.shape, dtype=self._dtype), torch.empty(lines.shape[1:])
            for picture, line in zip(normalised, lines):  # one by one, and they never leave the core's cache
                picture.copy_(scratch.copy_(line).sub_(mean).mul_(scale))
        else:
            normalised = lines.float().sub_(mean).mul_(scale).to(self._dtype)
        return normalised.view(pictures.shape).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """Normalised pictures ``(B, 3, S, S)`` -> ``(B, P, C)`` float16, contiguous; what float16 cannot hold is
        infinite.

        On a CPU ``CPU_BATCH`` at a time, from the first on: how a block is cut decides its last bits, so nothing else
            may.
        """
        size = CPU_BATCH if self.device.type == "cpu" else len(pictures)
        with torch.autocast(self.device.type, self._dtype, enabled=self.precision != "fp32"):
            parts = [self.encoder(part).half() for part in pictures.split(size)]
        return torch.cat(parts)

    def record(self, pictures: int, side: int) -> None:
        """On a GPU encode batches of so many pictures of this side by a CUDA graph from now on, at once and not kernel
        by kernel.

        Launching a network's kernels takes the processor longer than a fast GPU computes them. The graph's are the same
        ones, and so are its bytes. On a CPU nothing changes.
        """
        shape = (pictures, side, side, 3)
        if self.device.type == "cuda" and not (self._recorded and self._recorded.pictures.shape == shape):
            self._recorded = _Recorded(self, torch.zeros(shape, dtype=torch.uint8, device=self.device))

    def features(self, pictures: Tensor) -> Tensor:
        """``(B, S, S, 3)`` uint8 on the device -> ``(B, P, C)`` float16; with a graph overwritten by the next call."""
        if self._recorded is not None and pictures.shape == self._recorded.pictures.shape:
            return self._recorded(pictures)
        return self.encode(self.normalise(pictures))

    def __call__(self, pictures: np.ndarray) -> Tensor:
        """``(B, S, S, 3)`` uint8 in memory -> ``(B, P, C)`` float16 on the device."""
        return self.features(torch.from_numpy(np.ascontiguousarray(pictures)).to(self.device))


class _Recorded:
    """Normalisation and forward pass of one shape as a CUDA graph, which reads and writes the same memory at every
    replay."""

    @torch.inference_mode()
    def __init__(self, encoder: PictureEncoder, pictures: Tensor) -> None:
        def passes() -> Tensor:
            return encoder.encode(encoder.normalise(pictures))

        self.pictures = pictures
        warm_up(passes, encoder.device)
        self._graph, self._features = record(passes, encoder.device)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        self.pictures.copy_(pictures)
        self._graph.replay()
        return self._features
