"""Transitions and curvature, averaged over trajectories, as a measure of genmeasures."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.plugin import (
    Layer,
    ModelData,
    ModelMeasure,
    OptionError,
    Undefined,
    Value,
    Variable,
    is_count,
    one_of,
    require,
)
from genmeasures_transitions.codes import Survey, survey
from genmeasures_transitions.counting import batch_size, count_transitions, path_turning
from genmeasures_transitions.curvature import (
    PROJECTIONS,
    Jacobians,
    Profile,
    changed_codes,
    is_piecewise_linear,
    path_profile,
)
from genmeasures_transitions.drawing import draw_images, draw_random, draw_triples
from genmeasures_transitions.trajectories import Trajectory, ellipse_through, translations

log = logging.getLogger(__name__)

_REFERENCES = "Novak et al. 2018, Sensitivity and Generalization in Neural Networks"
_ALONG = ("trajectory", "point")
_EXAMPLES = 8
"""Number of inputs that show which functions a model runs."""
LONG = 2**18
"""From this number of points on, float64 is used: neighbors in float32 flicker across the boundaries."""


def double_copy(model: nn.Module, example: Tensor) -> nn.Module | None:
    """Return a copy of a model in float64, None if the model does not run in it.

    Args:
        model: Model in evaluation mode.
        example: A few inputs (B, …).

    Raises:
        Undefined: If the model, in its own type, has NaN or infinite outputs.

    Example:
        >>> double_copy(nn.Linear(2, 3), torch.zeros(1, 2)).weight.dtype
        torch.float64
    """
    with torch.no_grad():
        output = model(example)
    if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
        raise Undefined("NaN or infinite activations")
    try:
        twin = copy.deepcopy(model).double()
        with torch.no_grad():
            twin(example.double())
    except (RuntimeError, TypeError, ValueError) as error:  # it creates tensors of its own type, or cannot be copied
        log.debug("the model does not run in float64", exc_info=error)
        return None
    return twin


class TransitionCount(ModelMeasure):
    """Transitions of activation codes, and curvature of the output, along closed trajectories in input space.

    t = Σ_i ‖c(z_i) − c(z_{(i+1) mod k})‖₁ for k points z_i of a trajectory, where c is the activation code of every
    unit. A model with an activation without a code, such as a sigmoid, has no count, and neither have layers that are
    not directly followed by an activation. Activations that do not directly follow a layer, such as those after a sum,
    count in the total alone. Other functions with kinks, such as max pooling, are not counted, and the status names
    them; it also says if the curvature shows that something else, such as a softmax, bends the function. From 2¹⁸
    points on, points and model are in float64.

    The curvature is ½ Σ_i ‖J(z_i) − J(z_{(i+1) mod k})‖_F for the Jacobian matrix J of the output with respect to the
    input, 0 for a linear model. Where activations have codes, and nothing else bends the function, J is computed only
    where a code changes; whether nothing else does is tested within the longest sequences of points with one code. For
    other models, such as those with smooth activations, it is computed at every point. For more than 128 outputs, norms
    are estimated by 32 random projections. The turning is the same sum for the derivative along the path, which
    includes the turning of the path.

    Along each trajectory, with positions as arc lengths, the result has the norms of the Jacobian of the softmax and of
    the output, the number of transitions per unit of arc length between a point and the next, and the positions of the
    inputs that the trajectory passes through.

    Source: Novak et al. 2018, "Sensitivity and Generalization in Neural Networks".

    Args:
        trajectory: ``"training_ellipse"``, ``"random_ellipse"`` or ``"translations"``. These are the ellipse through
            three training inputs, the ellipse through three normal inputs with the mean and standard deviation of the
            training data, and the polyline through the horizontal translations of a test image.
        classes: Classes of the three training inputs of an ellipse, ``"same"``, ``"different"`` or ``"any"``.
        points: Number k of equidistant points on each trajectory.
        trajectories: Number of trajectories that are averaged.
        curvature_points: Number of equidistant points of the curvature, the turning and the profiles; 0 leaves them
            out. Each takes up to one backward pass per output.

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
        >>> ds.transition_density.dims
        ('model', 'trajectory', 'point')
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
        Variable(
            "path_turning", "turning of the derivative along a closed trajectory", references=_REFERENCES, dims=()
        ),
        Variable(
            "trajectory_position",
            "arc length up to each point of a trajectory",
            references=_REFERENCES,
            dims=_ALONG,
            auxiliary=True,
        ),
        Variable(
            "trajectory_anchor",
            "arc length up to each of the inputs that a trajectory passes through",
            references=_REFERENCES,
            dims=("trajectory", "anchor"),
            auxiliary=True,
        ),
        Variable(
            "transition_density",
            "transitions per unit of arc length between a point and the next",
            references=_REFERENCES,
            dims=_ALONG,
        ),
        Variable(
            "jacobian_profile",
            "Frobenius norm of the Jacobian of the softmax along a trajectory",
            references=_REFERENCES,
            dims=_ALONG,
        ),
        Variable(
            "jacobian_profile_logits",
            "Frobenius norm of the Jacobian of the output along a trajectory",
            references=_REFERENCES,
            dims=_ALONG,
        ),
    )

    def __init__(
        self,
        trajectory: str = "training_ellipse",
        classes: str = "any",
        points: int = 2**12,
        trajectories: int = 10,
        curvature_points: int = 2**8,
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
        """See :meth:`ModelMeasure.measure`. What cannot be computed is Undefined; the other values remain.

        Raises:
            Undefined: If the data have no such trajectories, or one of them is constant.
        """
        drawn = self._drawn(data)
        paths = [self._path(inputs) for inputs in drawn]
        example = paths[0].points(0, _EXAMPLES, _EXAMPLES)
        note = ""
        if self.points >= LONG:
            twin = double_copy(model, example)
            if twin is None:
                note = "computed in float32, since the model does not run in float64"
            else:
                model, paths = twin, [self._path([one.double() for one in inputs]) for inputs in drawn]
                example = paths[0].points(0, _EXAMPLES, _EXAMPLES)
        found = survey(model, example, layers)
        profiles, bent = self._profiles(model, found, paths, example, data)
        notes = (found.note, "something else bends the function, which is not counted" if bent else "", note)
        return {**self._counts(model, found, paths, example, len(layers), "; ".join(filter(None, notes))), **profiles}

    def _counts(
        self, model: nn.Module, found: Survey, paths: Sequence[Trajectory], example: Tensor, layers: int, note: str
    ) -> dict[str, Any]:
        """Transition counts, and their density along the trajectories."""
        places = self.curvature_points
        parts = places if 0 < places <= self.points else 1
        try:
            activations = found.coded
        except Undefined as reason:  # the curvature needs no codes
            names = ("transition_count", "transition_count_layer", "transition_count_trajectory", "transition_density")
            return dict.fromkeys(names, reason)
        batch = batch_size(activations, example)
        # float64 (trajectories, activations, parts)
        counts = np.stack(
            [count_transitions(model, activations, path, self.points, batch, parts) for path in paths]
        ).astype(np.float64)
        means = counts.sum(2).mean(0)
        by_layer: list[float | Undefined] = []
        for index in range(layers):
            own = [
                float(mean) for mean, activation in zip(means, activations, strict=True) if activation.layer == index
            ]
            by_layer.append(sum(own) if own else Undefined("no activation with a code follows this layer directly"))
        density: Any = Undefined("not computed: curvature_points is 0")
        if parts == places:
            lengths = np.array([path.length / places for path in paths])
            density = counts.sum(1) / lengths[:, None]
        elif places:
            density = Undefined(f"points must be at least curvature_points, got {self.points} and {places}")
        return {
            "transition_count": Value(float(means.sum()), note),
            "transition_count_layer": by_layer,
            "transition_count_trajectory": counts.sum((1, 2)),
            "transition_density": density,
        }

    def _profiles(
        self, model: nn.Module, found: Survey, paths: Sequence[Trajectory], example: Tensor, data: ModelData
    ) -> tuple[dict[str, Any], bool]:
        """Curvature, turning and what varies along the trajectories, and whether something without a name bends."""
        places = self.curvature_points
        names = ("path_curvature", "jacobian_profile", "jacobian_profile_logits")
        if not places:
            missing = ("path_turning", "trajectory_position", "trajectory_anchor", *names)
            return dict.fromkeys(missing, Undefined("not computed: curvature_points is 0")), False
        values: dict[str, Any] = {
            "path_turning": self._turning(model, paths, batch_size(found.activations, example)),
            "trajectory_position": np.stack([np.arange(places) * (path.length / places) for path in paths]),
            "trajectory_anchor": np.stack([path.anchors() for path in paths]),
        }
        try:
            profiles, bent = self._computed(model, found, paths, example, data)
        except Undefined as reason:  # the counts are valid nevertheless
            return {**values, **dict.fromkeys(names, reason)}, False
        softmax = [profile.softmax for profile in profiles]
        known = [norms for norms in softmax if isinstance(norms, np.ndarray)]
        note = f"estimated by {PROJECTIONS} random projections" if profiles[0].estimated else ""
        made = {
            **values,
            "path_curvature": Value(sum(profile.curvature for profile in profiles) / len(profiles), note),
            "jacobian_profile": np.stack(known) if known else softmax[0],
            "jacobian_profile_logits": np.stack([profile.logits for profile in profiles]),
        }
        return made, bent

    def _computed(
        self, model: nn.Module, found: Survey, paths: Sequence[Trajectory], example: Tensor, data: ModelData
    ) -> tuple[list[Profile], bool]:
        """Profiles along the trajectories, and whether something without a name bends the function."""
        places = self.curvature_points
        jacobians = Jacobians(model, example[:2], data.generator)
        changed: list[NDArray[np.bool_] | None] = [None] * len(paths)
        bent = False
        if not found.smooth and not found.kinks:
            steps = [changed_codes(model, found.activations, path, places, jacobians.batch) for path in paths]
            bent = not is_piecewise_linear(found.activations, paths, steps, jacobians)
            changed = changed if bent else list(steps)
        profiles = [path_profile(model, path, places, jacobians, own) for path, own in zip(paths, changed, strict=True)]
        return profiles, bent

    def _turning(self, model: nn.Module, paths: Sequence[Trajectory], batch: int) -> float | Undefined:
        try:
            return sum(path_turning(model, path, self.curvature_points, batch) for path in paths) / len(paths)
        except Undefined as reason:
            return reason
        except NotImplementedError as reason:
            return Undefined(f"the model cannot be differentiated in forward mode: {str(reason).splitlines()[0]}")

    def _drawn(self, data: ModelData) -> Sequence[Sequence[Tensor]]:
        """The inputs that each trajectory passes through."""
        if self.trajectory == "translations":
            images = draw_images(data, self.trajectories)
            if images[0].dim() < 2:
                raise Undefined("horizontal translations need images (channels, …, width), got flat inputs")
            return [[image] for image in images]
        if self.trajectory == "random_ellipse":
            return draw_random(data, self.trajectories)
        return draw_triples(data, self.trajectories, self.classes)

    def _path(self, inputs: Sequence[Tensor]) -> Trajectory:
        return translations(*inputs) if self.trajectory == "translations" else ellipse_through(*inputs)
