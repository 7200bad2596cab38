"""One vector per input: the whole output of the layer, flattened."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.data.keys import mix
from genmeasures.extractors.samples import Drawn, Every, places
from genmeasures.interfaces import TAPS, Extractor, Layer, PatchReader, PatchSet, Sample, is_count, one_of, require


class WholeTensor(Extractor):
    """The flattened output x_ℓ of each input; its patch is the whole input of the layer.

    Both are in the order (*spatial, channels). This is the "original PCA method" of Rajagopal et al. 2021, Table 1.

    Args:
        cap: inputs sampled; None takes all.
        components: d, number of components of the PCA; None takes tensors as they are, not centered.
        tap: "activation" reads the output after the normalization and activation that follow, "linear" before, "block"
            after the sums and concatenations that it then goes into.
        fit_cap: inputs that fits see, if ``cap`` is larger.

    Raises:
        OptionError: an option is invalid.

    Example:
        >>> len(WholeTensor(cap=2).sample(4, np.arange(3, dtype=np.uint64), seed=0))
        2
    """

    name = "whole_tensor"
    whole_output = True
    projects_patches = True

    def __init__(
        self, cap: int | None = 80_000, components: int | None = 10, tap: str = "activation", fit_cap: int = 80_000
    ) -> None:
        require(cap is None or is_count(cap), self, f"cap must be an integer ≥ 1 or null, got {cap!r}")
        require(is_count(fit_cap), self, f"fit_cap must be an integer ≥ 1, got {fit_cap!r}")
        valid = components is None or is_count(components)
        require(valid, self, f"components must be an integer ≥ 1 or null, got {components!r}")
        one_of(self, "tap", tap, TAPS)
        self.cap = cap
        self.components = components
        self.tap = tap
        self.fit_cap = fit_cap

    def sample(self, positions: int, keys: NDArray[np.uint64], seed: int, fit: bool = False) -> Sample:
        cap = self.fit_cap if fit and (self.cap is None or self.cap > self.fit_cap) else self.cap
        if cap is None or cap >= len(keys):
            return Every(places(keys), 1)
        salt = mix(np.array([seed], dtype=np.uint64))
        inputs = np.sort(np.argsort(mix(keys ^ salt))[:cap])
        return Drawn(inputs, np.zeros(len(inputs), dtype=np.int64), places(keys[inputs]))

    def vector_size(self, layer: Layer) -> int:
        return layer.channels * layer.positions

    def patch_size(self, layer: Layer) -> int:
        return layer.input_size

    def vectors(self, output: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        whole = output.transpose(1, 2).flatten(1)
        return (whole if len(rows) == len(whole) else whole.index_select(0, rows)).float()

    def patches(self, read: PatchReader, rows: Tensor, positions: Tensor) -> PatchSet:
        return read.whole(rows)
