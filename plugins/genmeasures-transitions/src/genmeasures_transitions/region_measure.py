"""Numbers of regions on segments and in a plane, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genmeasures.plugin import Layer, ModelData, ModelMeasure, Undefined, Value, Variable, is_count, require
from genmeasures_transitions.codes import Activation, Survey, survey
from genmeasures_transitions.counting import batch_size
from genmeasures_transitions.curvature import changed_codes
from genmeasures_transitions.drawing import draw_triples
from genmeasures_transitions.measure import double_copy
from genmeasures_transitions.regions import LineRegions, directional, line_regions, random_direction
from genmeasures_transitions.slice import slice_through
from genmeasures_transitions.trajectories import Polyline

_REFERENCES = "Hanin and Rolnick 2019, Deep ReLU Networks Have Surprisingly Few Activation Patterns"
_SAMPLED = 2**12
"""Number of points at which regions of a segment are counted if its breakpoints cannot be found."""
_BENT = 0.9
"""A function whose Jacobian differs at more than this fraction of neighboring points is not piecewise linear."""
_NOT_LINEAR = "the function is not piecewise linear, or has no forward derivative"
_BENT_WITHIN = "something besides the activations bends the function, or it has no forward derivative"
_EXAMPLES = 8
_ON_A_LINE = ("region_count_line", "linear_region_count_line", "region_count_each")
_IN_A_PLANE = ("region_count_plane", "linear_region_count_plane")
_GRID = ("region_grid", "linear_region_grid", "region_grid_x", "region_grid_y", "region_grid_corner")


def _variable(name: str, long_name: str, dims: tuple[str, ...] = (), auxiliary: bool = False) -> Variable:
    return Variable(name, long_name, references=_REFERENCES, bounds=(0, math.inf), dims=dims, auxiliary=auxiliary)


class RegionCount(ModelMeasure):
    """Activation regions on segments between training inputs, and in the plane through three of them.

    In a region the activation code of every unit is constant, and in a linear region, of neighboring regions with equal
    Jacobians, the function is linear. On a segment all breakpoints are found, so that the number is exact but for
    regions shorter than 10⁻⁹ of the segment. Where something besides the activations bends the function, such as a
    softmax or max pooling, regions are counted at 4096 points, which the status says; linear regions are then those of
    the whole function, pooling included. In the plane they are counted on a square grid, and smaller ones can be
    missed; linear regions are undefined there if the Jacobian differs between points of one activation region. The
    plane contains the three inputs with a margin of a quarter.

    Beside them are N and N²/2, the numbers of Hanin and Rolnick, #neurons^d/d!, for d = 1 and 2. N is the number of
    pairs of a unit and a threshold, which is the number of units for ReLU.

    The grid has the numbers of its regions, its coordinates in distances of input space, and those of the three inputs.

    Source: Hanin and Rolnick 2019, "Deep ReLU Networks Have Surprisingly Few Activation Patterns".

    Args:
        lines: Number of segments that are averaged.
        resolution: Number of grid points along each axis of the plane; 0 leaves the plane out.

    Raises:
        OptionError: If an option is out of range.

    Example:
        >>> import genmeasures
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
        >>> ds = genmeasures.measure([net], x, x, measures=[RegionCount(lines=3, resolution=8)])
        >>> ds.region_bound_line.item(), ds.region_bound_plane.item(), ds.region_grid.dims
        (4.0, 8.0, ('model', 'row', 'column'))
    """

    name = "region_count"
    variables = (
        _variable("region_count_line", "activation regions on a segment"),
        _variable("linear_region_count_line", "linear regions on a segment"),
        _variable("region_bound_line", "number of units, of which each can bound a region", auxiliary=True),
        _variable("region_count_plane", "activation regions in a plane"),
        _variable("linear_region_count_plane", "linear regions in a plane"),
        _variable("region_bound_plane", "half of the square of the number of units", auxiliary=True),
        _variable("region_count_each", "activation regions on each segment", ("line",)),
        _variable("region_grid", "number of the activation region", ("row", "column"), auxiliary=True),
        _variable("linear_region_grid", "number of the linear region", ("row", "column"), auxiliary=True),
        Variable(
            "region_grid_x", "distance from the first input", references=_REFERENCES, dims=("column",), auxiliary=True
        ),
        Variable(
            "region_grid_y", "distance from the first axis", references=_REFERENCES, dims=("row",), auxiliary=True
        ),
        Variable(
            "region_grid_corner",
            "coordinates x and y of the three inputs",
            references=_REFERENCES,
            dims=("anchor", "axis"),
            auxiliary=True,
        ),
    )

    def __init__(self, lines: int = 10, resolution: int = 128) -> None:
        require(is_count(lines), self, f"lines must be an integer ≥ 1, got {lines!r}")
        valid = is_count(resolution, 2) or (is_count(resolution, 0) and resolution == 0)
        require(valid, self, f"resolution must be 0 or an integer ≥ 2, got {resolution!r}")
        self.lines = lines
        self.resolution = resolution

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`. The plane contains the first of the segments.

        Raises:
            Undefined: If there are fewer than three training inputs, or an activation has no code.
        """
        triples = draw_triples(data, self.lines, "any", "segments and their plane need")
        example = torch.stack(triples[0])
        twin = double_copy(model, example)
        if twin is not None:
            model, triples = twin, [(a.double(), b.double(), c.double()) for a, b, c in triples]
        segment = Polyline(torch.stack(triples[0]))
        found = survey(model, segment.points(0, _EXAMPLES, _EXAMPLES), layers)
        units = sum(len(one.thresholds) * math.prod(one.shape) for one in found.coded)
        return {
            "region_bound_line": float(units),
            "region_bound_plane": units**2 / 2,
            **self._on_lines(model, found, triples, twin is not None, data.generator),
            **self._in_plane(model, found, triples[0]),
        }

    def _on_lines(
        self,
        model: nn.Module,
        found: Survey,
        triples: Sequence[tuple[Tensor, Tensor, Tensor]],
        double: bool,
        generator: torch.Generator,
    ) -> dict[str, Any]:
        activations = found.coded
        counts: list[int] = []
        linear: list[int | None] = []
        sampled = bool(found.kinks) or not double
        try:
            for a, b, _ in triples:
                made = None if sampled else _exact(model, activations, a, b, generator)
                sampled = made is None
                if made is None:
                    break
                counts.append(len(made.starts))
                linear.append(int(made.linear[-1]) + 1)
            if sampled:
                counts = [_count_at_points(model, activations, a, b) for a, b, _ in triples]
                linear = [_linear_at_points(model, activations, a, b, generator) for a, b, _ in triples]
        except Undefined as reason:
            return dict.fromkeys(_ON_A_LINE, reason)
        notes = [found.note, f"counted at {_SAMPLED} points" if sampled else ""]
        each = np.array(counts, dtype=np.float64)
        known = [count for count in linear if count is not None]
        merged: Value | Undefined = Undefined(_NOT_LINEAR)
        if len(known) == len(triples):
            merged = Value(float(np.mean(known)), notes[1])
        return {
            "region_count_line": Value(float(each.mean()), "; ".join(filter(None, notes))),
            "region_count_each": each,
            "linear_region_count_line": merged,
        }

    def _in_plane(self, model: nn.Module, found: Survey, triple: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        if not self.resolution:
            return dict.fromkeys((*_IN_A_PLANE, *_GRID), Undefined("not computed: resolution is 0"))
        try:
            plane = slice_through(model, *triple, resolution=self.resolution)
        except Undefined as reason:
            return dict.fromkeys((*_IN_A_PLANE, *_GRID), reason)
        notes = [found.note, f"counted at {self.resolution} × {self.resolution} points"]
        note = "; ".join(filter(None, notes))
        linear: Any = Value(float(plane.linear.max() + 1), note)
        grid: Any = plane.linear.astype(np.float64)
        if not plane.exact:
            linear = grid = Undefined(_BENT_WITHIN)
        return {
            "region_count_plane": Value(float(plane.regions.max() + 1), note),
            "linear_region_count_plane": linear,
            "region_grid": plane.regions.astype(np.float64),
            "linear_region_grid": grid,
            "region_grid_x": plane.x,
            "region_grid_y": plane.y,
            "region_grid_corner": plane.corners,
        }


def _exact(
    model: nn.Module, activations: Sequence[Activation], a: Tensor, b: Tensor, generator: torch.Generator
) -> LineRegions | None:
    """The regions of a segment; None if they cannot be found from breakpoints."""
    try:
        made = line_regions(model, activations, a, b, generator, batch_size(activations, a[None]))
    except NotImplementedError:
        return None
    return made if made.exact else None


def _count_at_points(model: nn.Module, activations: Sequence[Activation], a: Tensor, b: Tensor) -> int:
    """Regions of a segment that equidistant points on it belong to."""
    there_and_back = Polyline(torch.stack([a, b]))
    batch = batch_size(activations, a[None])
    changed = changed_codes(model, activations, there_and_back, 2 * _SAMPLED, batch)
    return 1 + int(changed[:_SAMPLED].sum())


def _linear_at_points(
    model: nn.Module, activations: Sequence[Activation], a: Tensor, b: Tensor, generator: torch.Generator
) -> int | None:
    """Linear regions of a segment that equidistant points on it belong to; None if the function bends everywhere."""
    t = torch.linspace(0, 1, _SAMPLED, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.dim())
    direction, slopes = random_direction(a, generator), []
    try:
        for part in t.split(batch_size(activations, a[None])):
            inputs = a + part * (b - a)
            slopes.append(directional(model, inputs, direction.expand_as(inputs))[1].double())
    except NotImplementedError:
        return None
    rows = torch.cat(slopes)
    tolerance = (1e-9 if a.dtype == torch.float64 else 1e-4) * float(rows.abs().max())
    changed = (rows[1:] - rows[:-1]).abs().amax(1) > tolerance
    return None if float(changed.double().mean()) > _BENT else 1 + int(changed.sum())
