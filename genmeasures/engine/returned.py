"""What components give back, checked where it comes in: a wrong type or shape names the component that made it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genmeasures.errors import ComponentError
from genmeasures.interfaces import Component, Extractor, Labeler, Layer, PatchSet, Sample


def checked_sample(extractor: Extractor, made: object) -> Sample:
    """A sample of int64; raises ComponentError for anything else."""
    if not isinstance(made, Sample):
        raise _wrong(extractor, "sample", made, "a Sample, genmeasures.plugin.Drawn(inputs, positions, rank) for one,")
    for what, part in zip(("inputs", "positions", "ranks"), made.part(0, 1), strict=True):
        if part.dtype != np.int64:
            raise ComponentError(f"{extractor.name}: sample gave {what} of {part.dtype}, int64 is expected")
    return made


def checked_patches(extractor: Extractor, made: object) -> PatchSet:
    """A set of patches; raises ComponentError for anything else."""
    if not isinstance(made, PatchSet):
        raise _wrong(extractor, "patches", made, "a PatchSet, read.receptive_fields(rows, positions) for one,")
    return made


def checked_vectors(extractor: Extractor, made: object, count: int, layer: Layer) -> Tensor:
    """float32 (count, vector_size); raises ComponentError for anything else.

    Example:
        >>> from genmeasures.extractors import WholeTensor
        >>> layer = Layer(0, "conv", "Conv2d", 4, (2, 2), 9, 16, 1.0, "Conv2d")
        >>> checked_vectors(WholeTensor(), torch.zeros(3, 4), 3, layer)
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: whole_tensor: vectors gave float32 (3, 4), float32 (3, 16) is expected
    """
    return _tensor(extractor, "vectors", made, torch.float32, [(count, extractor.vector_size(layer))])


def checked_labels(labeler: Labeler, made: object, *shapes: Sequence[int]) -> Tensor:
    """int64 of one of these shapes; raises ComponentError for anything else."""
    return _tensor(labeler, "label", made, torch.int64, shapes)


def _tensor(
    component: Component, method: str, made: object, dtype: torch.dtype, shapes: Sequence[Sequence[int]]
) -> Tensor:
    if not isinstance(made, Tensor) or made.dtype != dtype or tuple(made.shape) not in [tuple(one) for one in shapes]:
        due = " or ".join(str(tuple(one)) for one in dict.fromkeys(map(tuple, shapes)))
        raise _wrong(component, method, made, f"{_name(dtype)} {due}")
    return made


def _wrong(component: Component, method: str, made: object, due: str) -> ComponentError:
    if isinstance(made, Tensor):
        what = f"{_name(made.dtype)} {tuple(made.shape)}"
    else:
        what = "None" if made is None else f"an object of type {type(made).__name__}"
    return ComponentError(f"{component.name}: {method} gave {what}, {due} is expected")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
