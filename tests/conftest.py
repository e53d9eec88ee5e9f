"""Settings shared by all tests."""

from __future__ import annotations

import os

# Tensors are tiny here: a second thread only waits, and where cores are shared it waits long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
