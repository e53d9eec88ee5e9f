"""Matrices as 8-bit integers: what is stored, and what onnxruntime makes of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from captioner.captioning.onnx.captioner import open_session
from captioner.export.int8 import store_in_int8


def graph(matrix: np.ndarray, words: np.ndarray) -> bytes:
    """x (n, K), tokens (m,) -> x @ matrix, words[tokens]."""
    nodes = [helper.make_node("MatMul", ["x", "matrix"], ["y"]), helper.make_node("Gather", ["words", "tokens"], ["z"])]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", matrix.shape[0]]),
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["m"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", matrix.shape[1]]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, ["m", words.shape[1]]),
    ]
    weights = [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(words, "words")]
    made = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(("rows", "block"), [(96, 32), (50, 25), (88, 22)])
def test_every_number_is_within_half_a_step(rows: int, block: int) -> None:
    """A step is the largest magnitude of the block / 127, in float16, which has 11 bits."""
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(rows, 90)).astype(np.float32)
    matrix[:block, 3] = 0  # a block of zeros
    matrix[0, 5] = 1000.0  # spoils its own block alone
    words = generator.normal(size=(500, 10)).astype(np.float32)
    stored = store_in_int8(graph(matrix, words))
    onnx.checker.check_model(onnx.load_from_string(stored))
    session = open_session(stored, "graph")
    found, looked_up = session.run(None, {"x": np.eye(rows, dtype=np.float32), "tokens": np.arange(500)})
    steps = np.abs(matrix.reshape(-1, block, 90)).max(1, keepdims=True) / 127 * (1 + 2**-11)
    steps = np.broadcast_to(steps, (rows // block, block, 90)).reshape(rows, 90)
    # and where rounding the step in float16 cuts the largest number off
    assert np.all(np.abs(found - matrix) <= 0.5 * steps + np.abs(matrix) * 2**-10)
    assert np.all(found[:block, 3] == 0) and np.any(found != matrix)
    assert np.array_equal(looked_up, words.astype(np.float16).astype(np.float32))


def test_a_matrix_without_blocks_is_stored_in_fp16() -> None:
    """67 rows are a prime number."""
    matrix = np.random.default_rng(0).normal(size=(67, 90)).astype(np.float32)
    session = open_session(store_in_int8(graph(matrix, matrix)), "graph")
    found, _ = session.run(None, {"x": np.eye(67, dtype=np.float32), "tokens": np.arange(2)})
    assert np.array_equal(found, matrix.astype(np.float16).astype(np.float32))


def test_small_matrices_and_what_is_no_matrix_stay() -> None:
    small = graph(np.ones((8, 8), np.float32), np.ones((8, 8), np.float32))
    assert store_in_int8(small) == small
    large = graph(np.ones((128, 128), np.float32), np.ones((128, 128), np.float32))
    assert len(store_in_int8(large)) < len(large) * 0.45  # a matrix in 8 bits, word vectors in 16
