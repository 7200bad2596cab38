"""The measure: transitions and curvature, averaged over trajectories."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from genmeasures.plugin import (
    Layer,
    ModelData,
    ModelMeasure,
    OptionError,
    Undefined,
    Variable,
    is_count,
    one_of,
    require,
)
from genmeasures_transitions.codes import find_activations
from genmeasures_transitions.counting import batch_size, count_transitions, curvature
from genmeasures_transitions.drawing import draw_images, draw_random, draw_triples
from genmeasures_transitions.trajectories import Trajectory, ellipse_through, translations

_REFERENCES = "Novak et al. 2018, Sensitivity and Generalization in Neural Networks"


class TransitionCount(ModelMeasure):
    """t(x) = Σ_i ‖c(z_i) − c(z_{(i+1) mod k})‖₁ over k points of a closed trajectory, and the curvature along it.

    c is the activation code of every unit. trajectory: the ellipse through three training inputs
    ("training_ellipse"), through three normal inputs with the mean and standard deviation of the
    training data ("random_ellipse"), or the polyline through the horizontal translations of a test
    image ("translations"). classes: of the three training inputs, "same", "different" or "any".
    points: k. trajectories: how many are averaged. curvature_points: points of the curvature, each of
    which takes as long as three to twelve points of the count; 0 leaves the curvature out.

    A model with an activation without a code, such as a sigmoid, has no value; nor have layers that
    no activation follows directly. Activations that follow none, after a sum for one, count in the
    total alone.
    """

    name = "transition_count"
    variables = (
        Variable("transition_count", "transitions along a closed trajectory", references=_REFERENCES, dims=()),
        Variable("transition_count_layer", "transitions of one layer's activation", references=_REFERENCES),
        Variable(
            "transition_count_trajectory",
            "transitions along each trajectory",
            references=_REFERENCES,
            dims=("trajectory",),
        ),
        Variable("path_curvature", "curvature along a closed trajectory", references=_REFERENCES, dims=()),
    )

    def __init__(
        self,
        trajectory: str = "training_ellipse",
        classes: str = "any",
        points: int = 2**12,
        trajectories: int = 10,
        curvature_points: int = 2**10,
    ) -> None:
        one_of(self, "trajectory", trajectory, ("random_ellipse", "training_ellipse", "translations"))
        one_of(self, "classes", classes, ("same", "different", "any"))
        for option, value, least in (
            ("points", points, 3),
            ("trajectories", trajectories, 1),
        ):
            require(is_count(value, least), self, f"{option} must be an integer ≥ {least}, not {value!r}")
        valid = is_count(curvature_points, 3) or (is_count(curvature_points, 0) and curvature_points == 0)
        require(valid, self, f"curvature_points must be 0 or an integer ≥ 3, not {curvature_points!r}")
        if classes != "any" and trajectory != "training_ellipse":
            raise OptionError(f"TransitionCount: classes={classes!r} requires trajectory='training_ellipse'")
        self.trajectory = trajectory
        self.classes = classes
        self.points = points
        self.trajectories = trajectories
        self.curvature_points = curvature_points

    def from_targets(self) -> Collection[str]:
        """All variables, where classes are told apart."""
        return () if self.classes == "any" else [variable.name for variable in self.variables]

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """transition_count and path_curvature float, transition_count_layer one a layer, …_trajectory float64 (T,).

        Raises Undefined if the data have no such trajectories, one of them is constant, or the model
        has an activation without a code or none with one. A curvature that cannot be had, or was not
        asked for, is an Undefined, and the counts stand.
        """
        paths = self._paths(data)
        example = paths[0].points(0, 3, self.points)
        activations = find_activations(model, example, layers)
        batch = batch_size(activations, example)
        # float64 (trajectories, activations)
        counts = np.stack([count_transitions(model, activations, path, self.points, batch) for path in paths])
        means = counts.mean(0)
        by_layer: list[float | Undefined] = []
        for place in range(len(layers)):
            own = [float(mean) for mean, one in zip(means, activations, strict=True) if one.layer == place]
            by_layer.append(sum(own) if own else Undefined("no activation with a code follows this layer directly"))
        return {
            "transition_count": float(means.sum()),
            "transition_count_layer": by_layer,
            "transition_count_trajectory": counts.sum(1).astype(np.float64),
            "path_curvature": self._curvature(model, paths, batch),
        }

    def _curvature(self, model: nn.Module, paths: Sequence[Trajectory], batch: int) -> float | Undefined:
        if self.curvature_points == 0:
            return Undefined("not asked for: curvature_points is 0")
        try:
            return sum(curvature(model, path, self.curvature_points, batch) for path in paths) / len(paths)
        except Undefined as reason:  # the counts stand
            return reason
        except NotImplementedError as reason:
            return Undefined(f"the model cannot be differentiated in forward mode: {str(reason).splitlines()[0]}")

    def _paths(self, data: ModelData) -> list[Trajectory]:
        if self.trajectory == "translations":
            images = draw_images(data, self.trajectories)
            if images[0].dim() < 2:
                raise Undefined("horizontal translations need images (channels, …, width), inputs are flat")
            return [translations(image) for image in images]
        if self.trajectory == "random_ellipse":
            return [ellipse_through(*triple) for triple in draw_random(data, self.trajectories)]
        return [ellipse_through(*triple) for triple in draw_triples(data, self.trajectories, self.classes)]
