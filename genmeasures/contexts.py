"""The contexts in which everything is computed, whatever those of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

_CASTING = ("cpu", "cuda", "xpu", "mps")
"""Kinds of devices that may have an autocast of their own."""


@contextmanager
def settled() -> Iterator[None]:
    """Leave the contexts of the caller that would change values: what is computed inside is the same everywhere.

    Inside, autocast and inference mode are off, gradients are on, NumPy only warns of floating-point
    errors, and products of float32 are of float32 precision. All of it is as before at the end.
    Default dtype, default device and ``torch.use_deterministic_algorithms`` stay those of the caller,
    for models may need them: code of this package names dtypes and devices itself.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), settled():
        ...     print((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        torch.float32
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        uncast(),
        np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"),
        _float32_products(),
    ):
        yield


def casting() -> list[str]:
    """The kinds of devices for which autocast is on."""
    return [kind for kind in _CASTING if torch.is_autocast_enabled(kind)]


@contextmanager
def uncast() -> Iterator[None]:
    """Without autocast, which would compute statistics in half precision."""
    with ExitStack() as stack:
        for kind in casting():
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _float32_products() -> Iterator[None]:
    """Products of float32 in float32: "high" and "medium" round them to TF32 or bfloat16."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the switches of single backends, which torch 2.9 added, have been set one by one
        before = "highest"
    switches: list[tuple[Any, str]] = []
    try:
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
        for backend in _backends():
            if backend.fp32_precision not in ("none", "ieee"):
                switches.append((backend, backend.fp32_precision))
                backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in switches:
            backend.fp32_precision = precision
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def _backends() -> list[Any]:
    """What has a precision of its own, beside cuDNN's convolutions, whose usual one is TF32."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    return [backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul]
