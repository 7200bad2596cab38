"""Tiles of the inputs of a model, and statistics of its normalizations over whole inputs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from genmeasures.engine.tiling.normalization import Moments, NormCall, Norms, moments
from genmeasures.engine.tiling.survey import Survey
from genmeasures.engine.tiling.tiles import Site, Tile, spans, tiles
from genmeasures.errors import ModelError
from genmeasures.interfaces import Split
from genmeasures.tracing import OTHER_LAYERS, TracedLayer, forward


class _Seen(BaseException):
    """Ends a forward pass with the moments of a tile; no model's own handling of errors catches it."""

    def __init__(self, part: Moments) -> None:
        self.part = part


class Tiling:
    """The tiles of one model's inputs."""

    def __init__(
        self,
        model: nn.Module,
        found: Survey,
        layers: Sequence[TracedLayer],
        size: tuple[int, ...],
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self._model = model
        self._found = found
        self._places = {layer.layer.index: place for place, layer in enumerate(layers)}
        self._norms = found.sites[len(layers) :]
        self._size = size
        self._device = device
        self._layout = layout
        self._known: dict[tuple[Split, int], list[Moments]] = {}
        """By split and input: the statistics of its normalizations, in running order."""

    def site(self, layer: TracedLayer) -> Site:
        """Where the layer's output lies on the input."""
        return self._found.sites[self._places[layer.layer.index]]

    def tiles(self, layers: Sequence[TracedLayer]) -> Iterator[Tile]:
        """Tiles in whose cores all of these layers are right."""
        return self._tiles([self.site(layer) for layer in layers])

    def cut(self, inputs: Tensor, tile: Tile) -> Tensor:
        """What a tile reads of inputs (1, C, *S), on the device."""
        part = inputs[(slice(None), slice(None), *(slice(span.start, span.stop) for span in tile))]
        return part.to(self._device).contiguous(memory_format=self._layout)

    def norms(self, split: Split, index: int, inputs: Tensor, layers: Sequence[TracedLayer]) -> list[Moments]:
        """Statistics of all normalizations that run before the last of these layers, for one whole input (1, C, *S).

        One pass over the tiles for each, the ones before it being known; kept for later passes.
        """
        known = self._known.setdefault((split, index), [])
        needed = max((self._found.norms_before[self._places[layer.layer.index]] for layer in layers), default=0)
        while len(known) < needed:
            known.append(self._measured(inputs, known))
        return known[:needed]

    def _measured(self, inputs: Tensor, known: Sequence[Moments]) -> Moments:
        """The statistics of the first normalization that is not known yet, merged over the tiles."""
        site = self._norms[len(known)]
        merged: Moments | None = None
        for tile in self._tiles([site]):
            if not site.is_in(tile):
                continue
            try:
                with Norms(known, unknown=functools.partial(_end, site, tile)):
                    forward(self._model, self.cut(inputs, tile))
            except _Seen as seen:
                merged = seen.part if merged is None else merged.merged(seen.part)
                continue
            raise ModelError(OTHER_LAYERS)
        assert merged is not None
        return merged

    def _tiles(self, sites: Sequence[Site]) -> Iterator[Tile]:
        return tiles(
            [
                spans(
                    size,
                    self._found.cores[axis],
                    self._found.steps[axis],
                    max(site.before[axis] for site in sites),
                    max(site.after[axis] for site in sites),
                    self._found.least[axis],
                )
                for axis, size in enumerate(self._size)
            ]
        )


def _end(site: Site, tile: Tile, call: NormCall) -> Moments:
    """Raise :class:`_Seen` with the moments of a normalization's input in the tile's core."""
    core = site.local(tile, call.input.shape[2:])
    raise _Seen(moments(call.input[(slice(None), slice(None), *core)], call.groups))
