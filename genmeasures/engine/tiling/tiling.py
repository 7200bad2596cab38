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
    """The tiles of the inputs of one model.

    Args:
        model: the model.
        surveyed: the survey of its layers.
        layers: the surveyed layers.
        size: spatial size of an input.
        device: device of the model.
        layout: memory format of the tiles.
    """

    def __init__(
        self,
        model: nn.Module,
        surveyed: Survey,
        layers: Sequence[TracedLayer],
        size: tuple[int, ...],
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self._model = model
        self._survey = surveyed
        self._indices = {layer.layer.index: index for index, layer in enumerate(layers)}
        self._norms = surveyed.sites[len(layers) :]
        self._size = size
        self._device = device
        self._layout = layout
        self._known: dict[tuple[Split, int], list[Moments]] = {}
        """By split and input: the statistics of its normalizations, in the order of the forward pass."""

    def site(self, layer: TracedLayer) -> Site:
        """How the output of a layer lies on the input."""
        return self._survey.sites[self._indices[layer.layer.index]]

    def tiles(self, layers: Sequence[TracedLayer]) -> Iterator[Tile]:
        """Tiles in whose cores all of these layers have their values in the whole input."""
        return self._tiles([self.site(layer) for layer in layers])

    def cut(self, inputs: Tensor, tile: Tile) -> Tensor:
        """The part of inputs (1, C, *S) that a tile reads, on the device."""
        part = inputs[(slice(None), slice(None), *(slice(span.start, span.stop) for span in tile))]
        return part.to(self._device).contiguous(memory_format=self._layout)

    def norms(self, split: Split, index: int, inputs: Tensor, layers: Sequence[TracedLayer]) -> list[Moments]:
        """Statistics of all normalizations before the last of these layers, over a whole input (1, C, *S).

        Each takes one pass over the tiles, given those before it; they are cached for later passes.
        """
        known = self._known.setdefault((split, index), [])
        needed = max((self._survey.norms_before[self._indices[layer.layer.index]] for layer in layers), default=0)
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
                    self._survey.cores[axis],
                    self._survey.steps[axis],
                    max(site.before[axis] for site in sites),
                    max(site.after[axis] for site in sites),
                    self._survey.least[axis],
                )
                for axis, size in enumerate(self._size)
            ]
        )


def _end(site: Site, tile: Tile, call: NormCall) -> Moments:
    """Raise :class:`_Seen` with the moments of a normalization's input in the tile's core."""
    core = site.local(tile, call.input.shape[2:])
    raise _Seen(moments(call.input[(slice(None), slice(None), *core)], call.groups))
