"""An encoder on its device: uint8 images in, float16 features out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from captioner.device import record, warm_up
from captioner.features.encoders import Encoder
from captioner.features.encoders.folding import fold_batch_norms

# the activations of 4 images stay in a core's cache; with 32 squeezenet1_1 is a quarter slower
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


class ImageEncoder:
    """An encoder on a device in a precision.

    Batch normalisations are folded into the convolutions before them. Weights of convolutions and linear layers are
    cast once, not at every step as autocast alone would; the results are the same.
    """

    def __init__(self, encoder: Encoder, device: torch.device, precision: str) -> None:
        fold_batch_norms(encoder)
        # module-wide memory formats are missing in torch's annotations
        self.encoder: Encoder = encoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.precision = device, precision
        self._dtype = _DTYPES[precision]
        if precision == "fp32":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        else:
            for module in encoder.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(self._dtype)
        self._recorded: _Recorded | None = None
        self._mean = torch.tensor(encoder.spec.mean, device=device) * 255
        self._scale = 1 / (torch.tensor(encoder.spec.std, device=device) * 255)

    @torch.inference_mode()
    def normalise(self, images: Tensor) -> Tensor:
        """``(B, S, S, 3)`` uint8 on the device -> ``(B, 3, S, S)`` in the encoder's precision, channels last in
        memory."""
        # of a whole line (S * 3,): long enough for vector instructions
        mean, scale = (values.repeat(images.shape[2]) for values in (self._mean, self._scale))
        lines = images.flatten(2)  # (B, S, S * 3)
        if self.device.type == "cpu":
            normalised, scratch = torch.empty(lines.shape, dtype=self._dtype), torch.empty(lines.shape[1:])
            for image, line in zip(normalised, lines):  # one by one: an image stays in the core's cache
                image.copy_(scratch.copy_(line).sub_(mean).mul_(scale))
        else:
            normalised = lines.float().sub_(mean).mul_(scale).to(self._dtype)
        return normalised.view(images.shape).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, 3, S, S)`` -> ``(B, P, C)`` float16, contiguous; what float16 cannot hold is
        infinite.

        On a CPU ``CPU_BATCH`` at a time. The split decides the last bits, so it depends on nothing else.
        """
        size = CPU_BATCH if self.device.type == "cpu" else len(images)
        with torch.autocast(self.device.type, self._dtype, enabled=self.precision != "fp32"):
            parts = [self.encoder(part).half() for part in images.split(size)]
        return torch.cat(parts)

    def record(self, images: int, side: int) -> None:
        """On a GPU, capture a CUDA graph for batches of this many images of this side.

        Launching a network's kernels takes longer than a fast GPU needs to run them: with the graph squeezenet1_1 is
        2.7 times as fast on an H100, resnet50 1.9 times (docs/benchmarks.md). The kernels and results are the same. On
        a CPU nothing changes.
        """
        shape = (images, side, side, 3)
        if self.device.type == "cuda" and not (self._recorded and self._recorded.images.shape == shape):
            self._recorded = _Recorded(self, torch.zeros(shape, dtype=torch.uint8, device=self.device))

    def features(self, images: Tensor) -> Tensor:
        """``(B, S, S, 3)`` uint8 on the device -> ``(B, P, C)`` float16; with a graph overwritten by the next call."""
        if self._recorded is not None and images.shape == self._recorded.images.shape:
            return self._recorded(images)
        return self.encode(self.normalise(images))

    def __call__(self, images: np.ndarray) -> Tensor:
        """``(B, S, S, 3)`` uint8 in memory -> ``(B, P, C)`` float16 on the device."""
        return self.features(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))


class _Recorded:
    """Normalisation and forward pass of one shape as a CUDA graph; every replay uses the same memory."""

    @torch.inference_mode()
    def __init__(self, encoder: ImageEncoder, images: Tensor) -> None:
        def passes() -> Tensor:
            return encoder.encode(encoder.normalise(images))

        self.images = images
        warm_up(passes, encoder.device)
        self._graph, self._features = record(passes, encoder.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        self.images.copy_(images)
        self._graph.replay()
        return self._features
