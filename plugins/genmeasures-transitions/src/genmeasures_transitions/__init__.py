"""Transition counts and curvature along closed trajectories in input space (Novak et al. 2018)."""

from __future__ import annotations

from genmeasures.plugin import Register, hookimpl
from genmeasures_transitions.codes import Activation, Survey, find_activations, survey
from genmeasures_transitions.counting import batch_size, count_transitions, path_turning
from genmeasures_transitions.curvature import Jacobians, Profile, changed_codes, path_profile
from genmeasures_transitions.measure import TransitionCount
from genmeasures_transitions.region_measure import RegionCount
from genmeasures_transitions.regions import LineRegions, line_regions
from genmeasures_transitions.slice import Slice, slice_through
from genmeasures_transitions.trajectories import Ellipse, Polyline, Trajectory, ellipse_through, translations

__all__ = [
    "Activation",
    "Ellipse",
    "Jacobians",
    "LineRegions",
    "Polyline",
    "Profile",
    "RegionCount",
    "Slice",
    "Survey",
    "Trajectory",
    "TransitionCount",
    "batch_size",
    "changed_codes",
    "count_transitions",
    "ellipse_through",
    "find_activations",
    "line_regions",
    "path_profile",
    "path_turning",
    "slice_through",
    "survey",
    "translations",
]


@hookimpl
def genmeasures_register(register: Register) -> None:
    """Register the measures."""
    register(TransitionCount)
    register(RegionCount)
