"""Survey of a model for tiles: strides and receptive fields of its layers, determined and then verified."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genmeasures.engine.tiling.normalization import Moments, Norms
from genmeasures.engine.tiling.tiles import Site, round_up
from genmeasures.errors import ModelError
from genmeasures.tracing import Trace, TracedLayer, tapped, trace
from genmeasures.tracing.dtypes import rounding
from genmeasures.tracing.sketch import Shapes, Sketch
from genmeasures.tracing.trace import tensors_in

_GROWTH = math.factorial(8)
"""Elements by which an axis is lengthened to determine strides: a multiple of all usual ones."""

_CONVOLUTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, torch.convolution,
        F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """Strides and halos of a model's layers; ``steps``, ``cores`` and ``least`` have one entry per axis."""

    sites: tuple[Site, ...]
    """Those of the layers, then those of the normalizations, each in the order of the forward pass."""
    norms_before: tuple[int, ...]
    """Per layer: the number of normalizations that have run when its output is read."""
    steps: tuple[int, ...]
    """Tiles begin at multiples of these."""
    cores: tuple[int, ...]
    least: tuple[int, ...]
    """Size of the smallest tile that the model accepts."""


def sketched_trace(model: nn.Module, sketch: Sketch, shape: tuple[int, ...], tap: str) -> Trace:
    """The trace of the model for inputs of the shape (B, …), without any computation.

    Args:
        model: the model.
        sketch: its copy without memory.
        shape: shape of the inputs.
        tap: "activation" or "linear".

    Example:
        >>> net = nn.Conv2d(1, 4, 3)
        >>> sketch = Sketch(net, torch.device("cpu"))
        >>> sketched_trace(net, sketch, (2, 1, 4000, 4000), "linear").layers[0].layer.spatial
        (3998, 3998)
    """
    traced = trace(sketch.model, sketch.input(shape), tap)
    layers = tuple(replace(layer, module=sketch.original(layer.module, model)) for layer in traced.layers)
    return Trace(layers, traced.skipped)


def survey(
    model: nn.Module,
    sketch: Sketch,
    layers: Sequence[TracedLayer],
    example: Tensor,
    tile: Sequence[int],
    device: torch.device,
    layout: torch.memory_format,
) -> Survey | None:
    """Survey the layers of a model.

    Args:
        model: the model.
        sketch: its copy without memory.
        layers: the layers to measure.
        example: one whole input (1, C, *S), float32.
        tile: size of a core, per axis.
        device: device of the model.
        layout: memory format of the inputs.

    Returns:
        The survey; None if a core would be the whole input.

    Raises:
        ModelError: a layer cannot be measured in tiles; the message names the first one.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3)).eval()
        >>> example, device = torch.rand(1, 1, 64, 64), torch.device("cpu")
        >>> layers = trace(net, example.expand(2, -1, -1, -1), "linear").layers
        >>> layout = torch.contiguous_format
        >>> surveyed = survey(net, Sketch(net, device), layers, example, (16, 16), device, layout)
        >>> [(site.name, [int(stride) for stride in site.stride], site.after) for site in surveyed.sites]
        [('0', [1, 1], (2, 2)), ('2', [2, 2], (6, 6))]
    """
    originals = {id(sketch.original(module, model)): module for module in sketch.model.modules()}
    copies = [replace(layer, module=originals[id(layer.module)]) for layer in layers]
    return _Surveyor(model, sketch, layers, copies, example, device, layout).survey(tile)


class _Surveyor:
    def __init__(
        self,
        model: nn.Module,
        sketch: Sketch,
        layers: Sequence[TracedLayer],
        copies: Sequence[TracedLayer],
        example: Tensor,
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self._model = model
        self._sketch = sketch
        self._layers = layers
        self._copies = copies
        self._example = example
        self._size = tuple(example.shape[2:])
        self._device = device
        self._layout = layout

    def survey(self, tile: Sequence[int]) -> Survey | None:
        sizes, shapes, norms_before = self._shapes(self._size)
        count = len(self._size)
        strides = [[Fraction(1)] * count for _ in sizes]
        before, after = ([[0] * count for _ in sizes] for _ in range(2))
        steps, cores = [1] * count, list(self._size)
        tiled = [axis for axis in range(count) if tile[axis] < self._size[axis]]
        for axis in tiled:
            along, steps[axis] = self._strides(axis, sizes, shapes)
            for site, stride in enumerate(along):
                strides[site][axis] = stride
        least = self._accepted(0, steps[0], steps)
        for axis in tiled:
            core = round_up(tile[axis], steps[axis])
            if core >= self._size[axis]:
                continue
            along = [site[axis] for site in strides]
            reach, thin = self._reach(axis, steps, along)
            reach = self._tried(axis, steps, along, reach, thin)
            for site, (lead, lag) in enumerate(reach):
                before[site][axis], after[site][axis] = lead, lag
            if any(core + lead + lag < self._size[axis] for lead, lag in reach):
                cores[axis] = core
        if cores == list(self._size):
            return None
        sites = tuple(
            Site(self._name(site), spatial, tuple(strides[site]), tuple(before[site]), tuple(after[site]))
            for site, spatial in enumerate(sizes)
        )
        return Survey(sites, norms_before, tuple(steps), tuple(cores), tuple(least))

    def _name(self, site: int) -> str:
        layers = len(self._layers)
        return self._layers[site].layer.name if site < layers else f"normalization {site - layers + 1}"

    # Shapes ---------------------------------------------------------------------------------------------------

    def _shapes(self, spatial: Sequence[int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], tuple[int, ...]]:
        """Spatial sizes of all sites, shapes of all tensors, and normalizations before each layer, without a run."""
        shapes, sizes = Shapes(), dict[int, tuple[int, ...]]()
        norms_before = [0] * len(self._layers)

        def see(site: int, values: Tensor, norms: int) -> None:
            sizes[site] = tuple(values.shape[2:])
            if site < len(self._layers):
                norms_before[site] = norms

        with torch.no_grad(), shapes:
            self._run(self._sketch.model, self._copies, self._sketch.input((1, self._example.shape[1], *spatial)), see)
        return [sizes[site] for site in range(len(sizes))], shapes.made, tuple(norms_before)

    def _strides(
        self, axis: int, sizes: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, ...]]
    ) -> tuple[list[Fraction], int]:
        """The stride of each site along an axis in elements of the input, and a common multiple of all strides."""
        longer = [size + _GROWTH * (axis == other) for other, size in enumerate(self._size)]
        try:
            grown_sizes, grown, _ = self._shapes(longer)
        except ModelError as error:
            raise _refusal(self._sketch.last, "takes inputs of one size only") from error
        if len(sizes) != len(grown_sizes) or [len(shape) for shape in shapes] != [len(shape) for shape in grown]:
            raise _refusal(self._name(0), "and what follows it depend on the size of the input")
        strides = []
        for site, (size, grown_size) in enumerate(zip(sizes, grown_sizes, strict=True)):
            more = [b - a for a, b in zip(size, grown_size, strict=True)] if len(size) == len(grown_size) else []
            if len(more) != len(self._size) or more[axis] < 1 or any(more[:axis] + more[axis + 1 :]):
                raise _refusal(self._name(site), f"has an output of size {size} that does not follow that of the input")
            strides.append(Fraction(_GROWTH, more[axis]))
        steps = [
            Fraction(_GROWTH, abs(b - a)).numerator
            for original, enlarged in zip(shapes, grown, strict=True)
            for a, b in zip(original, enlarged, strict=True)
            if a != b
        ]
        return strides, math.lcm(*steps, *(stride.numerator for stride in strides))

    def _accepted(self, axis: int, length: int, steps: Sequence[int], thin: int = 1) -> list[int]:
        """Sizes that the model accepts, at least ``length`` along an axis and ``thin`` steps along the others.

        Modulo the steps they equal the sizes of the whole.
        """
        least = [length if a == axis else thin * step for a, step in enumerate(steps)]
        while True:
            sizes = [
                size % step + round_up(max(0, smallest - size % step), step)
                for size, smallest, step in zip(self._size, least, steps, strict=True)
            ]
            sizes = [size if a == axis else min(size, self._size[a]) for a, size in enumerate(sizes)]
            try:
                self._shapes(sizes)
                return sizes
            except ModelError:
                if all(size >= whole for size, whole in zip(sizes, self._size, strict=True)):
                    raise
                least = [2 * size for size in sizes]

    # Runs on small inputs ---------------------------------------------------------------------------------------

    def _run(
        self,
        model: nn.Module,
        layers: Sequence[TracedLayer],
        inputs: Tensor,
        see: Callable[[int, Tensor, int], None],
        known: Sequence[Moments] = (),
    ) -> list[Moments]:
        """One forward pass as far as the last layer; returns the statistics of the normalizations.

        Normalizations get the statistics ``known``, or those of the inputs. ``see`` is called with each site, its
        values (1, C, *S) and the number of normalizations so far.
        """
        norms = Norms(known, lambda number, call: see(len(layers) + number, call.input, number + 1))
        indices = {id(layer): index for index, layer in enumerate(layers)}

        def receive(layer: TracedLayer, layer_input: Tensor, output: Tensor) -> None:
            see(indices[id(layer)], output.movedim(-1, 1) if layer.channels_last else output, norms.count)

        taps = tapped(model, layers, receive, stop=True, whole=False)
        with torch.no_grad(), taps as tap, norms:
            tap.run(inputs)
        return norms.known

    def _noise(self, spatial: Sequence[int]) -> Tensor:
        """Noise (1, C, *spatial) with the mean and deviation of each channel of the example.

        A channel that is constant in the example gets the deviation 1, so that it shows what reads it.
        """
        values = self._example.flatten(2).double()
        deviation, mean = torch.std_mean(values, 2, correction=0, keepdim=True)
        size = (*values.shape[:2], math.prod(spatial))
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        noise = mean.cpu() + torch.where(deviation > 0, deviation, 1.0).cpu() * drawn
        shaped: Tensor = noise.to(self._example.dtype).unflatten(2, tuple(spatial))
        return shaped.to(self._device).contiguous(memory_format=self._layout)

    def _reach(self, axis: int, steps: Sequence[int], strides: Sequence[Fraction]) -> tuple[list[tuple[int, int]], int]:
        """Elements before and after the core that each site reads along an axis, and steps that the others must have.

        NaN propagates through everything that reads it: an input that is NaN from a multiple of the step on shows the
        last position that does not depend on what follows. Tiles end at such multiples alone, so that other phases do
        not matter. On either side there is as much as the whole axis, so that no element that a dilated kernel reads is
        missed.
        """
        step, whole = steps[axis], self._size[axis]
        length, limit = 2 * round_up(whole, step), 4 * round_up(whole, step)
        thin = 1
        while True:
            spatial = self._accepted(axis, length, steps, thin)
            inputs = self._noise(spatial)
            cut = spatial[axis] // (2 * step) * step
            known, clean = self._nan(inputs, axis, ())
            for site, values in enumerate(clean):
                if bool(values.any()):
                    raise ModelError(f"{self._name(site)}: NaN or infinite activations")
            starts, ends = inputs.clone(), inputs.clone()
            starts.narrow(axis + 2, 0, cut).fill_(math.nan)
            ends.narrow(axis + 2, cut, spatial[axis] - cut).fill_(math.nan)
            reads = _Reads()
            with reads:
                by_starts, by_ends = (self._nan(part, axis, known)[1] for part in (starts, ends))
            others = [a for a in range(len(spatial)) if a != axis and spatial[a] < self._size[a]]
            if reads.nothing and others:
                thin *= 2
                continue
            reach: list[tuple[int, int]] = []
            for by_start, by_end, stride in zip(by_starts, by_ends, strides, strict=True):
                first = int(by_end.int().argmax()) if bool(by_end.any()) else len(by_end)
                last = len(by_start) - 1 - int(by_start.flip(0).int().argmax()) if bool(by_start.any()) else -1
                if first == 0 or last == len(by_start) - 1:
                    break
                lead, lag = (last + 1) * stride - cut, cut - first * stride
                reach.append((round_up(max(0, math.ceil(lead)), step), round_up(max(0, math.ceil(lag)), step)))
            if len(reach) == len(strides):
                return reach, thin
            if length >= limit:
                raise _refusal(self._name(len(reach)), "depends on the input at any distance")
            length *= 2

    def _nan(self, inputs: Tensor, axis: int, known: Sequence[Moments]) -> tuple[list[Moments], list[Tensor]]:
        """The statistics of the normalizations, and for each site where along the axis it is NaN, bool (size,)."""
        missing: dict[int, Tensor] = {}

        def see(site: int, values: Tensor, norms: int) -> None:
            missing[site] = torch.isnan(values).movedim(axis + 2, 0).flatten(1).any(1).cpu()

        with _local_kernels():
            statistics = self._run(self._model, self._layers, inputs, see, known)
        return statistics, [missing[site] for site in range(len(missing))]

    def _tried(
        self, axis: int, steps: Sequence[int], strides: Sequence[Fraction], reach: list[tuple[int, int]], thin: int
    ) -> list[tuple[int, int]]:
        """The reach, or a step more, with which tiles have the values of the whole.

        More is needed where a tile lacks elements next to its end that it could compute, for example those that a
        transposed convolution crops. Raises ModelError where neither does.
        """
        if self._wrong(axis, steps, strides, reach, thin) is None:
            return reach
        wider = [(lead + steps[axis], lag + steps[axis]) for lead, lag in reach]
        wrong = self._wrong(axis, steps, strides, wider, thin)
        if wrong is None:
            return wider
        raise _refusal(
            self._name(wrong),
            "has other values in a tile than in the whole input: it depends on the position in the input",
        )

    def _wrong(
        self, axis: int, steps: Sequence[int], strides: Sequence[Fraction], reach: Sequence[tuple[int, int]], thin: int
    ) -> int | None:
        """The first site with other values in a tile at the start, in the middle or at the end than in the whole.

        They are compared where a site just reads enough: one step before the right end of what is valid, and one step
        after the left end.
        """
        step = steps[axis]
        most, last = (max(side) for side in zip(*reach, strict=True))
        stop = most + last + 2 * step
        inputs = self._noise(self._accepted(axis, stop + 1, steps, thin))
        end = inputs.shape[axis + 2]
        right, left = [], []
        for (lead, lag), stride in zip(reach, strides, strict=True):
            right.append((int((stop - lag - step) / stride), int((stop - lag) / stride)))
            left.append((int((step + lead) / stride), int((2 * step + lead) / stride)))
        known, whole = self._blocks(inputs, axis, [right, left], 0, strides, ())
        for start, stop_at, ranges in ((0, stop, [right]), (step, stop, [right, left]), (step, end, [left])):
            part = inputs.narrow(axis + 2, start, stop_at - start).contiguous(memory_format=self._layout)
            _, by_site = self._blocks(part, axis, ranges, start, strides, known)
            for site, blocks in enumerate(by_site):
                due = whole[site] if len(ranges) == 2 else whole[site][:1] if ranges[0] is right else whole[site][1:]
                for block, expected in zip(blocks, due, strict=True):
                    if block.shape != expected.shape:
                        return site
                    scale = float(expected.abs().max()) if expected.numel() else 0.0
                    if not torch.allclose(block, expected, rtol=0, atol=rounding(block.dtype) * scale, equal_nan=True):
                        return site
        return None

    def _blocks(
        self,
        inputs: Tensor,
        axis: int,
        ranges: Sequence[Sequence[tuple[int, int]]],
        start: int,
        strides: Sequence[Fraction],
        known: Sequence[Moments],
    ) -> tuple[list[Moments], list[list[Tensor]]]:
        """For each site, values at ranges of positions, for a part of the input that begins at ``start``."""
        by_site: dict[int, list[Tensor]] = {}

        def see(site: int, values: Tensor, norms: int) -> None:
            origin = int(start / strides[site])
            by_site[site] = [
                values[(slice(None),) * (axis + 2) + (slice(max(0, low - origin), max(0, high - origin)),)].clone()
                for low, high in (group[site] for group in ranges)
            ]

        statistics = self._run(self._model, self._layers, inputs, see, known)
        return statistics, [by_site[site] for site in range(len(by_site))]


class _Reads(TorchFunctionMode):
    """Detects a convolution that reads only padding: the input is too thin for its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:
            read = next(tensors_in([*args, *(kwargs or {}).values()]))
            self.nothing |= bool(torch.isnan(read).any()) and not bool(torch.isnan(result).any())
        return result


@contextmanager
def _local_kernels() -> Iterator[None]:
    """Without kernels that spread NaN over outputs that do not read it (FFT, Winograd)."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


def _refusal(layer: str, why: str) -> ModelError:
    return ModelError(
        f"{layer} {why}: it cannot be measured in tiles; leave tile out, or choose the layers before it with layers"
    )
