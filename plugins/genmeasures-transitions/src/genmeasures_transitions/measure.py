"""Transitions and curvature, averaged over trajectories, as a measure of genmeasures."""

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
    """Transitions of activation codes, and curvature of the output, along closed trajectories in input space.

    t = Σ_i ‖c(z_i) − c(z_{(i+1) mod k})‖₁ for k points z_i of a trajectory, where c is the activation code of every
    unit. A model with an activation without a code, such as a sigmoid, has no value, and neither have layers that are
    not directly followed by an activation. Activations that do not directly follow a layer, such as those after a sum,
    count in the total alone.

    Source: Novak et al. 2018, "Sensitivity and Generalization in Neural Networks".

    Args:
        trajectory: ``"training_ellipse"``, ``"random_ellipse"`` or ``"translations"``. These are the ellipse through
            three training inputs, the ellipse through three normal inputs with the mean and standard deviation of the
            training data, and the polyline through the horizontal translations of a test image.
        classes: Classes of the three training inputs of an ellipse, ``"same"``, ``"different"`` or ``"any"``.
        points: Number k of equidistant points on each trajectory.
        trajectories: Number of trajectories that are averaged.
        curvature_points: Number of equidistant points of the curvature; 0 leaves the curvature out. Each takes as long
            as three to twelve points of the count.

    Raises:
        OptionError: If an option is out of range.

    Example:
        >>> import genmeasures, torch
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
        >>> measure = TransitionCount(points=64, trajectories=2, curvature_points=8)
        >>> ds = genmeasures.measure([net], x, x, measures=[measure])
        >>> ds.transition_count.item() % 1 in (0, 0.5)  # the mean of two counts
        True
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
            require(is_count(value, least), self, f"{option} must be an integer ≥ {least}, got {value!r}")
        valid = is_count(curvature_points, 3) or (is_count(curvature_points, 0) and curvature_points == 0)
        require(valid, self, f"curvature_points must be 0 or an integer ≥ 3, got {curvature_points!r}")
        if classes != "any" and trajectory != "training_ellipse":
            raise OptionError(f"TransitionCount: classes={classes!r} applies to trajectory='training_ellipse' alone")
        self.trajectory = trajectory
        self.classes = classes
        self.points = points
        self.trajectories = trajectories
        self.curvature_points = curvature_points

    def from_targets(self) -> Collection[str]:
        """All variables, unless classes is "any"."""
        return () if self.classes == "any" else [variable.name for variable in self.variables]

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`. A curvature that cannot be computed is Undefined; the counts remain.

        Raises:
            Undefined: If the data have no such trajectories, one of them is constant, or the model has an activation
                without a code or no activation with a code.
        """
        paths = self._paths(data)
        example = paths[0].points(0, 3, self.points)
        activations = find_activations(model, example, layers)
        batch = batch_size(activations, example)
        # float64 (trajectories, activations)
        counts = np.stack([count_transitions(model, activations, path, self.points, batch) for path in paths])
        means = counts.mean(0)
        by_layer: list[float | Undefined] = []
        for index in range(len(layers)):
            own = [
                float(mean) for mean, activation in zip(means, activations, strict=True) if activation.layer == index
            ]
            by_layer.append(sum(own) if own else Undefined("no activation with a code follows this layer directly"))
        return {
            "transition_count": float(means.sum()),
            "transition_count_layer": by_layer,
            "transition_count_trajectory": counts.sum(1).astype(np.float64),
            "path_curvature": self._curvature(model, paths, batch),
        }

    def _curvature(self, model: nn.Module, paths: Sequence[Trajectory], batch: int) -> float | Undefined:
        if self.curvature_points == 0:
            return Undefined("not computed: curvature_points is 0")
        try:
            return sum(curvature(model, path, self.curvature_points, batch) for path in paths) / len(paths)
        except Undefined as reason:  # the counts are valid nevertheless
            return reason
        except NotImplementedError as reason:
            return Undefined(f"the model cannot be differentiated in forward mode: {str(reason).splitlines()[0]}")

    def _paths(self, data: ModelData) -> list[Trajectory]:
        if self.trajectory == "translations":
            images = draw_images(data, self.trajectories)
            if images[0].dim() < 2:
                raise Undefined("horizontal translations need images (channels, …, width), got flat inputs")
            return [translations(image) for image in images]
        if self.trajectory == "random_ellipse":
            return [ellipse_through(*triple) for triple in draw_random(data, self.trajectories)]
        return [ellipse_through(*triple) for triple in draw_triples(data, self.trajectories, self.classes)]
