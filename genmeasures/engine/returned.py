"""Checks of what components return: a wrong type or shape names the component."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genmeasures.errors import ComponentError
from genmeasures.interfaces import Component, Extractor, Labeler, Layer, PatchSet, Sample


def checked_sample(extractor: Extractor, value: object) -> Sample:
    """A sample of int64 arrays; raises ComponentError for anything else.

    Args:
        extractor: the extractor, for messages.
        value: what its method ``sample`` returned.

    Example:
        >>> from genmeasures.extractors import WholeTensor
        >>> checked_sample(WholeTensor(), [0, 1])
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: whole_tensor: sample returned an object of type list, expected a Sample ...
    """
    if not isinstance(value, Sample):
        raise _wrong(extractor, "sample", value, "a Sample such as genmeasures.plugin.Drawn(inputs, positions, rank)")
    for what, part in zip(("inputs", "positions", "ranks"), value.part(0, 1), strict=True):
        if part.dtype != np.int64:
            raise ComponentError(f"{extractor.name}: sample returned {what} of {part.dtype}, expected int64")
    return value


def checked_patches(extractor: Extractor, value: object) -> PatchSet:
    """A set of patches; raises ComponentError for anything else.

    Args:
        extractor: the extractor, for messages.
        value: what its method ``patches`` returned.

    Example:
        >>> from genmeasures.extractors import WholeTensor
        >>> checked_patches(WholeTensor(), torch.zeros(3, 4))
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: whole_tensor: patches returned float32 (3, 4), expected a PatchSet ...
    """
    if not isinstance(value, PatchSet):
        raise _wrong(extractor, "patches", value, "a PatchSet such as read.receptive_fields(rows, positions)")
    return value


def checked_vectors(extractor: Extractor, value: object, count: int, layer: Layer) -> Tensor:
    """float32 (count, vector_size); raises ComponentError for anything else.

    Args:
        extractor: the extractor.
        value: what its method ``vectors`` returned.
        count: number of vectors.
        layer: the layer.

    Example:
        >>> from genmeasures.extractors import WholeTensor
        >>> layer = Layer(0, "conv", "Conv2d", 4, (2, 2), 9, 16, 1.0, "Conv2d")
        >>> checked_vectors(WholeTensor(), torch.zeros(3, 4), 3, layer)
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: whole_tensor: vectors returned float32 (3, 4), expected float32 (3, 16)
    """
    return _tensor(extractor, "vectors", value, torch.float32, [(count, extractor.vector_size(layer))])


def checked_labels(labeler: Labeler, value: object, *shapes: Sequence[int]) -> Tensor:
    """int64 of one of these shapes; raises ComponentError for anything else.

    Args:
        labeler: the labeler, for messages.
        value: what its method ``label`` returned.
        shapes: valid shapes.

    Example:
        >>> from genmeasures.labelers import KMeans
        >>> checked_labels(KMeans(), torch.zeros(3), (3,))
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: kmeans: label returned float32 (3,), expected int64 (3,)
    """
    return _tensor(labeler, "label", value, torch.int64, shapes)


def _tensor(
    component: Component, method: str, value: object, dtype: torch.dtype, shapes: Sequence[Sequence[int]]
) -> Tensor:
    if (
        not isinstance(value, Tensor)
        or value.dtype != dtype
        or tuple(value.shape) not in [tuple(shape) for shape in shapes]
    ):
        expected = " or ".join(str(shape) for shape in dict.fromkeys(map(tuple, shapes)))
        raise _wrong(component, method, value, f"{_name(dtype)} {expected}")
    return value


def _wrong(component: Component, method: str, value: object, expected: str) -> ComponentError:
    if isinstance(value, Tensor):
        what = f"{_name(value.dtype)} {tuple(value.shape)}"
    else:
        what = "None" if value is None else f"an object of type {type(value).__name__}"
    return ComponentError(f"{component.name}: {method} returned {what}, expected {expected}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
