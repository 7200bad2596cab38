"""One vector per pixel, with its receptive field as the patch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.data.keys import mix
from genmeasures.extractors.samples import Drawn, Every, places
from genmeasures.interfaces import TAPS, Extractor, Layer, PatchReader, PatchSet, Sample, is_count, one_of, require

_BLOCK = 1 << 21
"""Positions drawn at a time."""


class ReceptiveField(Extractor):
    """Pixels x_ℓ[:, p] of the output and their receptive fields (Rajagopal et al. 2021, section 2.1).

    Args:
        cap: number of pixels sampled per layer; None takes all. They are drawn uniformly over all positions,
            equally many from each input (80 000 in the paper).
        components: d, number of components of the PCA of pixels; None takes pixels as they are, not centered.
        tap: "activation" reads the output after the normalization and activation that follow, "linear" before, "block"
            after the sums and concatenations that it then goes into.
        fit_cap: pixels that projections, clusters and mixtures are fitted on, if ``cap`` is larger.

    Raises:
        OptionError: an option is invalid.

    Example:
        >>> sample = ReceptiveField(cap=5).sample(4, np.arange(3, dtype=np.uint64), seed=0)
        >>> len(sample), sample.part(0, 3)[0].tolist()  # two vectors of two inputs, one of the other
        (5, [0, 0, 1, 1, 2])
    """

    name = "receptive_field"

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
        n = len(keys)
        salt = mix(np.array([seed], dtype=np.uint64))
        if cap is None or n * positions <= cap:
            return Every(places(keys), positions)
        each, rest = divmod(cap, n)
        counts = np.full(n, each)
        counts[np.argsort(mix(keys ^ salt))[:rest]] += 1
        chosen = np.concatenate(
            [
                _choose(keys[start : start + rows] ^ salt, positions, counts[start : start + rows], each)
                for rows in [max(1, _BLOCK // (each + 1))]
                for start in range(0, n, rows)
            ]
        )
        order = np.argsort(keys)
        starts = np.empty(n, dtype=np.int64)
        starts[order] = np.cumsum(counts[order]) - counts[order]
        within = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
        return Drawn(np.repeat(np.arange(n), counts), chosen, np.repeat(starts, counts) + within)

    def vector_size(self, layer: Layer) -> int:
        return layer.channels

    def patch_size(self, layer: Layer) -> int:
        return layer.patch_size

    def vectors(self, output: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        by_position = output.transpose(1, 2)
        if len(rows) == len(output) * output.shape[2]:  # all pixels: no indexing
            return by_position.reshape(-1, output.shape[1]).float()
        return by_position[rows, positions].float()

    def patches(self, read: PatchReader, rows: Tensor, positions: Tensor) -> PatchSet:
        return read.receptive_fields(rows, positions)


def _choose(keys: NDArray[np.uint64], positions: int, counts: NDArray[np.int64], each: int) -> NDArray[np.int64]:
    """For each input ``counts`` different positions, ``each`` or one more, ascending.

    The time is that of the chosen positions, not of all.
    """
    if 2 * each < positions:
        return _draw(keys, positions, counts)
    # For half of the positions or more it is faster to draw those that are left out.
    out = positions - counts
    chosen = np.ones((len(keys), positions), dtype=bool)
    chosen[np.repeat(np.arange(len(keys)), out), _draw(keys, positions, out)] = False
    return np.nonzero(chosen)[1]


def _draw(keys: NDArray[np.uint64], positions: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first different numbers of a random sequence that depends on the key of an input alone."""
    width = int(counts.max() * 1.5) + 4
    while True:
        draws = mix(keys[:, None] + mix(np.arange(width, dtype=np.uint64))) % np.uint64(positions)
        order = np.argsort(draws, axis=1, kind="stable")
        draws = np.take_along_axis(draws, order, axis=1)
        first = np.ones(draws.shape, dtype=bool)
        first[:, 1:] = draws[:, 1:] != draws[:, :-1]
        different = np.empty_like(first)
        np.put_along_axis(different, order, first, axis=1)
        number = np.cumsum(different, axis=1)
        if bool((number[:, -1] >= counts).all()):
            break
        width *= 2
    taken = different & (number <= counts[:, None])
    return draws[np.take_along_axis(taken, order, axis=1)].astype(np.int64)
