"""Feed of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.engine.feed import Feed, Portion, TargetLabels, Vectors
from genmeasures.engine.layer import LayerState
from genmeasures.engine.prepare import PreparedData
from genmeasures.engine.tiling.normalization import Moments, Norms
from genmeasures.engine.tiling.tiles import Site, Tile, sampled
from genmeasures.engine.tiling.tiling import Tiling
from genmeasures.interfaces import SampleName
from genmeasures.tracing.tap import Tap


@dataclass(frozen=True)
class TilePortion(Portion):
    """A tile of one input."""

    tile: Tile
    norms: Sequence[Moments]
    """Statistics of the normalizations over the whole input."""
    sites: Mapping[int, Site]
    """By the index of a layer."""
    core: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]]
    """By the index of a layer: positions in the whole output, and ranks, of the vectors in the tile's core."""

    def run(self, tap: Tap) -> Any:
        with Norms(self.norms):
            return tap.run(self.inputs)

    def vectors(self, state: LayerState, sample: SampleName, inputs: Tensor, output: Tensor) -> Vectors:
        traced = state.traced
        spatial = [tuple(x.shape[1:-1] if traced.channels_last else x.shape[2:]) for x in (inputs, output)]
        geometry = replace(traced.geometry, input_spatial=spatial[0], output_spatial=spatial[1])
        positions, rank = self.core[state.layer.index]
        local = self.sites[state.layer.index].local_positions(self.tile, spatial[1], positions)
        ranks = torch.from_numpy(rank)
        return Vectors(geometry, torch.zeros_like(ranks), torch.from_numpy(local), ranks, torch.from_numpy(positions))


class TileFeed(Feed):
    """Feeds inputs one by one, tile by tile; tiles without any sampled vector are left out.

    Args:
        data: data of the run.
        device: device of the model.
        tiling: tiling of the model.
    """

    whole = False

    def __init__(self, data: PreparedData, device: torch.device, tiling: Tiling) -> None:
        self._data = data
        self._device = device
        self._tiling = tiling

    def portions(self, sample: SampleName, states: Sequence[LayerState]) -> Iterator[Portion]:
        split = self._data.split_of(sample)
        layers = [state.traced for state in states]
        sites = {state.layer.index: self._tiling.site(state.traced) for state in states}
        for first, inputs, targets in self._data.sources[split].checked():
            for row in range(len(inputs)):
                start, single = first + row, inputs[row : row + 1]
                labels = TargetLabels(
                    self._data.labelers, None if targets is None else targets[row : row + 1], self._device
                )
                norms = self._tiling.norms(split, start, single, layers)
                for tile in self._tiling.tiles(layers):
                    core = {
                        state.layer.index: sampled(state.samples[sample], start, sites[state.layer.index], tile)
                        for state in states
                    }
                    if any(len(positions) for positions, _ in core.values()):
                        yield TilePortion(start, self._tiling.cut(single, tile), labels, tile, norms, sites, core)
