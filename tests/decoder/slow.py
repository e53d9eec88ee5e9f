"""The decoder straight from the equations, one caption and one step at a time; slow, and sharing no code with the real
one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.decoder import Decoder, DecoderConfig


def slow_logits(
    decoder: Decoder,
    features: Tensor,
    tokens: Tensor,
    positions: Sequence[int] | None = None,
    batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (P, C) and one caption's tokens (n + 1,) -> logits (n, V), attention weights (n, P); no dropout.

    Xu et al. 2015, equations 1-9 and 13, with features projected, normalised and given positions first. Hard attention
    looks at ``positions`` (n,), where -1 is the expected value, and without them at the likeliest. Layers as Graves
    2013, equations 1-6, without its connections that skip layers; tied weights as Press and Wolf 2017. A batch norm
    takes its statistics from ``batch`` (I, P, C), the features of all images, this one alone by default.
    """
    part = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    config = decoder.config
    E, H = config.feature_size, config.hidden_size

    projected = features @ part["projection.weight"].T + part["projection.bias"]  # (P, E)
    together = (features.unsqueeze(0) if batch is None else batch) @ part["projection.weight"].T + part[
        "projection.bias"
    ]  # (I, P, E)
    values = _normalise(config, part, projected, together if decoder.training else None)
    if config.position == "learned":
        values = values + part["position"]
    elif config.position == "sinusoidal":
        columns = len(values) // config.rows
        values = values + torch.tensor(
            [_sines(*divmod(cell, columns), E) for cell in range(len(values))], dtype=values.dtype
        )
    mean = values.mean(0)
    start = torch.tanh(part["initial.weight"] @ mean + part["initial.bias"])
    blocks = list(start.split(H))
    states = [
        (blocks.pop(0), blocks.pop(0) if config.decoder == "lstm" else None) for _ in range(config.layers)
    ]  # (h, c) of each layer
    cell = _lstm if config.decoder == "lstm" else _gru

    logits, attention = [], []
    for step in range(len(tokens) - 1):
        y = part["embedding.weight"][tokens[step]]
        if config.vector_size != config.embedding_size:
            y = part["embedding_map.weight"] @ y
        h, c = states[0]
        alpha, summary = _attend(config, part, h, values)
        if config.attention == "hard" and (positions is None or positions[step] >= 0):
            summary = values[int(alpha.argmax()) if positions is None else positions[step]]
        beta = 1 / (1 + torch.exp(-(part["gate.weight"] @ h + part["gate.bias"])))
        z = beta * summary
        from_input = part["word.weight"] @ y + part["word.bias"] + part["context.weight"] @ z
        from_h = part["layers.0.recurrent.weight"] @ h + part["layers.0.recurrent.bias"]
        states[0] = cell(from_input, from_h, h, c)
        for layer in range(1, config.layers):
            h, c = states[layer]
            below, own = f"between.{layer - 1}", f"layers.{layer}.recurrent"
            from_input = part[f"{below}.weight"] @ states[layer - 1][0] + part[f"{below}.bias"]
            states[layer] = cell(from_input, part[f"{own}.weight"] @ h + part[f"{own}.bias"], h, c)
        h = states[-1][0]
        o = h + part["output_context.weight"] @ z + part["output_word.weight"] @ y
        if config.tie_weights:
            if config.vector_size != H:
                o = part["output_map.weight"] @ o
            logits.append(part["embedding.weight"] @ o + part["tied_bias"])
        else:
            logits.append(part["vocabulary.weight"] @ o + part["vocabulary.bias"])
        attention.append(alpha)
    return torch.stack(logits), torch.stack(attention)


def _normalise(config: DecoderConfig, part: dict[str, Tensor], projected: Tensor, batch: Tensor | None) -> Tensor:
    """Of an image's cells (P, E); ``batch`` (I, P, E): those that a batch norm takes its statistics from, None: it has
    running ones."""
    if config.norm == "none":
        return projected
    if config.norm == "layer":
        mean, variance = projected.mean(1, keepdim=True), projected.var(1, correction=0, keepdim=True)
    elif batch is None:
        mean, variance = part["norm.running_mean"], part["norm.running_var"]
    else:
        cells = [cell for image in batch for cell in image]
        mean = sum(cells) / len(cells)
        variance = sum((cell - mean) ** 2 for cell in cells) / len(cells)
    return (projected - mean) / (variance + 1e-5).sqrt() * part["norm.weight"] + part["norm.bias"]


def _sines(row: int, column: int, size: int) -> list[float]:
    """Vaswani et al. 2017, section 3.5, for the row in the first half and for the column in the second."""
    vector = []
    for index in (row, column):
        for i in range(size // 4):
            angle = index / 10000 ** (2 * i / (size // 2))
            vector += [math.sin(angle), math.cos(angle)]
    return vector


def _attend(config: DecoderConfig, part: dict[str, Tensor], hidden: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden state (H,) and values (P, E) -> weights (P,), their sum of the values (E,)."""

    def softmax(scores: list[Tensor]) -> Tensor:
        powers = torch.stack(scores).exp()
        return powers / powers.sum()

    def weighted(weights: Tensor, rows: list[Tensor]) -> Tensor:
        return sum(weight * row for weight, row in zip(weights, rows))

    if config.attention != "none":
        query = part["attention.query.weight"] @ hidden + part["attention.query.bias"]  # (A,)
    if config.attention == "none":
        weights = torch.full((len(values),), 1 / len(values), dtype=values.dtype)
    elif config.attention in ("soft", "hard"):
        weights = softmax(
            [part["attention.score.weight"][0] @ torch.tanh(part["attention.key.weight"] @ a + query) for a in values]
        )
    elif config.attention == "dot":
        weights = softmax([query @ (part["attention.key.weight"] @ a) / len(query) ** 0.5 for a in values])
    elif config.attention == "bilinear":
        weights = softmax([query @ a for a in values])
    elif config.attention == "multihead":
        heads = []
        for q, w_key, w_value in zip(
            *(
                tensor.chunk(config.heads)
                for tensor in (query, part["attention.key.weight"], part["attention.value.weight"])
            )
        ):
            own = softmax([q @ (w_key @ a) / len(q) ** 0.5 for a in values])
            heads.append((own, weighted(own, [w_value @ a for a in values])))
        weights = sum(own for own, _ in heads) / len(heads)
        return weights, part["attention.output.weight"] @ torch.cat([head for _, head in heads])
    return weights, weighted(weights, list(values))


def _lstm(from_input: Tensor, from_h: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (from_input + from_h).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(from_input: Tensor, from_h: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    (r, z, n), (r_h, z_h, n_h) = from_input.chunk(3), from_h.chunk(3)
    reset, update = torch.sigmoid(r + r_h), torch.sigmoid(z + z_h)
    return (1 - update) * torch.tanh(n + reset * n_h) + update * h, c
