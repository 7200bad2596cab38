"""Contexts in which all values are computed, independent of those of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

_CASTING = ("cpu", "cuda", "xpu", "mps")
"""Device types with autocast."""


@contextmanager
def settled() -> Iterator[None]:
    """Override the contexts of the caller that would change values, and restore them at the end.

    Inside, autocast and inference mode are off, gradients are on, NumPy only warns about floating-point
    errors, and float32 products have float32 precision. Default dtype, default device and
    ``torch.use_deterministic_algorithms`` are those of the caller, because models may need them; the code of
    this package specifies dtypes and devices itself.

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
    """Return the device types for which autocast is on.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     casting()
        ['cpu']
    """
    return [kind for kind in _CASTING if torch.is_autocast_enabled(kind)]


@contextmanager
def uncast() -> Iterator[None]:
    """Turn autocast off, which would compute statistics in half precision.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), uncast():
        ...     casting()
        []
    """
    with ExitStack() as stack:
        for kind in casting():
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _float32_products() -> Iterator[None]:
    """Compute float32 products in float32: the precisions "high" and "medium" use TF32 or bfloat16."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the settings of single backends, added in torch 2.9, differ from each other
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
    """Backends with a precision of their own, except for cuDNN's convolutions, whose default is TF32."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    return [backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul]
