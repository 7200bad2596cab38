"""ARS, class selectivity and cumulative ablation as measures of genmeasures."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.plugin import (
    SPLITS,
    Layer,
    ModelData,
    ModelMeasure,
    Split,
    TracedLayer,
    Undefined,
    Value,
    Variable,
    is_count,
    one_of,
    require,
    tapped,
)
from genmeasures_ars.ablation import ORDERS, accuracy_curve, kernel_order, largest_gap
from genmeasures_ars.maximization import OBJECTIVES, ascend, begin_at, fitting_batch, strides
from genmeasures_ars.network import convolutions, example_of, tap_note, truncated
from genmeasures_ars.scores import ar, ars, rs, standard_error
from genmeasures_ars.selectivity import ClassMeans, class_selectivity, classes_of

Kernels: TypeAlias = NDArray[np.float64]
"""float64 (I,): a value for each kernel of a layer, NaN for one without."""

_ARS_PAPER = "Exploring the generalizability of CNNs via activated representational substitution, "
_MORCOS = "Morcos et al. 2018"
_PER_KERNEL = ("layer", "kernel")


class KernelMeasure(ModelMeasure):
    """Measure with one value per kernel of a convolution, by which kernels can be ordered."""

    @abc.abstractmethod
    def kernel_scores(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> list[Kernels | Undefined]:
        """Return the values of the kernels of each layer, or the reason why there are none."""


def _scores() -> tuple[Variable, ...]:
    """Per layer and per kernel ARS, RS and AR, and the standard errors of all."""
    names = {
        "ars": ("activated representational substitution", "eq. 5"),
        "rs": ("representational substitution", "eq. 3"),
        "ar": ("activated response", "eq. 4"),
    }
    variables: list[Variable] = []
    for dims, suffix, what in ((("layer",), "", "mean "), (_PER_KERNEL, "_kernel", "")):
        for name, (long_name, equation) in names.items():
            judged = name == "ars" and not suffix
            variables.append(
                Variable(
                    f"{name}{suffix}",
                    what + long_name,
                    expected_accuracy=-1 if judged else 0,
                    expected_accuracy_source=_ARS_PAPER + "table 2" if judged else "",
                    references=_ARS_PAPER + equation,
                    dims=dims,
                )
            )
    errors = [
        Variable(
            f"{variable.name}_error",
            f"standard error of the {variable.long_name} over starts",
            references=variable.references,
            dims=variable.dims,
            auxiliary=True,
        )
        for variable in variables
    ]
    return (*variables, *errors)


_SCORES = _scores()
_IMAGE = Variable(
    "ars_image",
    "input with the highest objective of a kernel",
    references=_ARS_PAPER + "eq. 1 and 2",
    dims=("layer", "kernel", "image_channel", "image_row", "image_column"),
    auxiliary=True,
)


@dataclass(frozen=True)
class _Responses:
    """The responses of the I kernels of a layer to what S ascents of each found."""

    rs: NDArray[np.float64]
    """(S, I)"""
    ar: NDArray[np.float64]
    """(S, I)"""
    images: NDArray[np.float64] | Undefined | None
    """(I, channel, row, column): per kernel the input with the highest objective; None if they are not kept."""
    note: str
    """What to note on AR."""

    @property
    def ars(self) -> NDArray[np.float64]:
        """(S, I)"""
        return ars(self.rs, self.ar)

    def silence(self) -> str:
        """What to note on kernels without a response, "" if there are none."""
        never, once = (self.ar == 0).all(0).sum(), (self.ar == 0).any(0).sum()
        total = self.ar.shape[1]
        notes = [f"{never} of {total} kernels have no response, and thus an ARS of 1"] * bool(never)
        notes += [f"{once - never} of {total} kernels have no response from some of the starts"] * bool(once - never)
        return "; ".join(notes)


class ARS(KernelMeasure):
    """Activated representational substitution (ARS): how easily other kernels replace a kernel.

    For kernel i of a convolution with I kernels, gradient ascent from noise finds an input that maximizes h_i (``am``)
    or h_i − (1/I) Σ_{j≠i} h_j (``iam``), where h is the mean of a kernel's activation map. On this input, RS is the
    fraction of kernels whose mean exceeds that of i, AR is the fraction of entries > 0 in the map of i, and
    ARS = (2/π)·atan(RS/AR), which is 1 where AR = 0; a note counts these kernels. The data are not read, only the shape
    of an input.

    What an ascent finds depends on the noise at its start. The values of a kernel are therefore means over several
    starts, and the value of a layer is the mean over its kernels. Each has the standard error over the starts beside
    it, ``ars_error`` for a layer and ``ars_kernel_error`` for its kernels. Linear layers have no value. A note says
    where no activation directly follows a layer, since AR is then the fraction of positive entries of a linear map.

    With ``keep_images``, ``ars_image`` holds for each kernel the input with the highest objective of all starts, which
    is not bounded. Its dimensions are (layer, kernel, image_channel, image_row, image_column). It is float64 and padded
    to the widest layer: L layers with at most I kernels and inputs of D values take 8·L·I·D bytes per model, in memory
    and in the result file.

    Source: "Exploring the generalizability of CNNs via activated representational substitution", equations 1 to 5.

    Args:
        objective: ``"iam"``, which suppresses the other kernels, or ``"am"``.
        steps: Number of steps of gradient ascent, the length of the path.
        step_size: Root mean square of the change of an input in one step; that of the noise is 1.
        growth: Length of a stride as a fraction of the path before it, at least one step. 0.04 takes 130 strides for
            1500 steps; 0 takes each step.
        starts: Number of ascents of each kernel, from different noise, over which values are averaged. The cost is
            proportional to it.
        tries: Number of noise inputs per start, of which a kernel starts at the first that it responds to. They are the
            same for all layers and kernels.
        keep_images: Whether the result keeps the inputs that were found; for inputs (channel, row, column).
        memory: MiB for the ascents that run side by side. Values depend on it by rounding alone.

    Raises:
        OptionError: If an option is out of range.

    Example:
        >>> import genmeasures
        >>> net = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU())
        >>> with torch.no_grad():  # three equal kernels: none exceeds another
        ...     _ = net[0].weight.fill_(1.0)
        >>> ds = genmeasures.measure([net], test=torch.rand(4, 1, 5, 5), measures=[ARS(steps=5)])
        >>> ds.rs.item(), ds.ars.item(), ds.ars_error.item()
        (0.0, 0.0, 0.0)
    """

    name = "ars"
    variables = _SCORES

    def __init__(
        self,
        objective: str = "iam",
        steps: int = 1500,
        step_size: float = 0.1,
        growth: float = 0.04,
        starts: int = 4,
        tries: int = 16,
        keep_images: bool = False,
        memory: int = 256,
    ) -> None:
        one_of(self, "objective", objective, OBJECTIVES)
        require(is_count(steps), self, f"steps must be an integer ≥ 1, got {steps!r}")
        sound = _is_number(step_size) and 0 < step_size < float("inf")
        require(sound, self, f"step_size must be a number > 0, got {step_size!r}")
        require(_is_number(growth) and 0 <= growth <= 1, self, f"growth must be a number from 0 to 1, got {growth!r}")
        require(is_count(starts), self, f"starts must be an integer ≥ 1, got {starts!r}")
        require(is_count(tries), self, f"tries must be an integer ≥ 1, got {tries!r}")
        require(isinstance(keep_images, bool), self, f"keep_images must be true or false, got {keep_images!r}")
        require(is_count(memory), self, f"memory must be an integer ≥ 1 (MiB), got {memory!r}")
        self.objective = objective
        self.steps = steps
        self.step_size = step_size
        self.growth = growth
        self.starts = starts
        self.tries = tries
        self.keep_images = keep_images
        if keep_images:
            vars(self)["variables"] = (*_SCORES, _IMAGE)
        self.memory = memory

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`."""
        parts = self._responses(model, layers, data)
        values: dict[str, Any] = {variable.name: [] for variable in self.variables}
        for part in parts:
            found = dict.fromkeys(values, part) if isinstance(part, Undefined) else self._values(part)
            for name, column in values.items():
                column.append(found[name])
        return values

    def kernel_scores(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> list[Kernels | Undefined]:
        """ARS of each kernel."""
        parts = self._responses(model, layers, data)
        return [part if isinstance(part, Undefined) else part.ars.mean(0) for part in parts]

    def _values(self, part: _Responses) -> dict[str, Any]:
        """The values of a layer by the name of the variable."""
        notes = {"ars": [part.silence(), part.note], "rs": [], "ar": [part.note]}
        values: dict[str, Any] = {"ars_image": part.images}
        for name, by_start in (("ars", part.ars), ("rs", part.rs), ("ar", part.ar)):
            kernels = by_start.mean(0)
            valid = np.isfinite(kernels)
            by_layer = by_start[:, valid].mean(1) if valid.any() else [np.nan]
            values |= {name: layer_mean(kernels, notes[name]), f"{name}_kernel": kernels}
            errors = {
                f"{name}_error": float(standard_error(by_layer)),
                f"{name}_kernel_error": standard_error(by_start),
            }
            values |= dict.fromkeys(errors, Undefined("a single start has no spread")) if self.starts == 1 else errors
        return values

    def _responses(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> list[_Responses | Undefined]:
        """The responses of each layer's kernels."""
        example = example_of(data)
        shape, generator = (self.tries, *example.shape[1:]), data.generator
        # One draw per start: the first starts are the same however many follow.
        draws = [
            torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
            for _ in range(self.starts)
        ]
        noise = torch.cat(draws).to(example)
        return [
            layer if isinstance(layer, Undefined) else self._layer(model, layer, noise)
            for layer in convolutions(model, layers, example)
        ]

    def _layer(self, model: nn.Module, layer: TracedLayer, noise: Tensor) -> _Responses:
        substitution: list[Kernels] = []
        response: list[Kernels] = []
        objectives: list[Tensor] = []
        inputs: list[Tensor] = []
        channels = layer.layer.channels
        with truncated(model, layer) as run:
            begin = torch.cat(
                [begin_at(run, tries) + self.tries * s for s, tries in enumerate(noise.split(self.tries))]
            )
            lengths = strides(self.steps, self.step_size, self.growth)
            kernels = torch.arange(channels, device=noise.device).repeat(self.starts)
            batch = fitting_batch(run, noise[:1], list(model.parameters()), self.memory * 2**20)
            for start, chunk in zip(begin.split(batch), kernels.split(batch), strict=True):
                ascent = ascend(run, noise[start], chunk, self.objective, lengths)
                substitution.append(rs(ascent.means, chunk))
                response.append(np.where(np.isfinite(ascent.objective.cpu().numpy()), ar(ascent.maps), np.nan))
                if self.keep_images:
                    objectives.append(ascent.objective)
                    inputs.append(ascent.inputs)
        rows = (self.starts, channels)
        images = best_images(torch.cat(inputs), torch.cat(objectives).view(rows)) if self.keep_images else None
        return _Responses(
            np.concatenate(substitution).reshape(rows), np.concatenate(response).reshape(rows), images, tap_note(layer)
        )


class ClassSelectivity(KernelMeasure):
    """Class selectivity of kernels, (μ_max − μ_−max)/(μ_max + μ_−max) of class-conditional mean activations.

    μ_max is the mean of the class to which the kernel responds most, μ_−max the mean over the other classes. A kernel
    that is silent for all classes, or has a negative mean, has no value; the mean over the layer leaves it out, with a
    note. Linear layers have no value. The targets must be one class per input.

    Source: Morcos et al. 2018, "On the importance of single directions for generalization".

    Args:
        split: Split of the class means, ``"train"``, ``"test"`` or ``"validation"``.

    Raises:
        OptionError: If ``split`` is neither.

    Example:
        >>> import genmeasures
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())
        >>> net[0].weight.data.fill_(1.0)
        tensor([[[[1.]]]])
        >>> x = torch.tensor([3.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)  # class means 3 and 1
        >>> ds = genmeasures.measure([net], test=(x, torch.tensor([0, 1])), measures=[ClassSelectivity()])
        >>> ds.class_selectivity.item()
        0.5
    """

    name = "class_selectivity"
    variables = (
        Variable("class_selectivity", "mean class selectivity", references=_MORCOS),
        Variable("class_selectivity_kernel", "class selectivity", references=_MORCOS, dims=_PER_KERNEL),
    )

    def __init__(self, split: Split = "test") -> None:
        one_of(self, "split", split, SPLITS)
        self.split = split

    def from_targets(self) -> Collection[str]:
        """All variables."""
        return [variable.name for variable in self.variables]

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`."""
        values = self.kernel_scores(model, layers, data)
        return {
            "class_selectivity": [layer_mean(layer) for layer in values],
            "class_selectivity_kernel": values,
        }

    def kernel_scores(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> list[Kernels | Undefined]:
        """Class selectivity of each kernel."""
        example: Tensor = next(iter(data.batches(self.split)))[0]
        traced = convolutions(model, layers, example[:3])
        chosen = [layer for layer in traced if not isinstance(layer, Undefined)]
        means = {layer.layer.name: ClassMeans() for layer in chosen}
        classes = torch.empty(0)

        def receive(layer: TracedLayer, given: Tensor, output: Tensor) -> None:
            means[layer.layer.name].add(output, classes)

        if chosen:
            with torch.no_grad(), tapped(model, chosen, receive, stop=True) as tap:
                for inputs, targets in data.batches(self.split):
                    classes = classes_of(targets, self.name)
                    tap.run(inputs)
        return [
            layer if isinstance(layer, Undefined) else class_selectivity(means[layer.layer.name].result())
            for layer in traced
        ]


class CumulativeAblation(ModelMeasure):
    """Accuracy as the kernels of a layer are silenced one after another, ordered by a score.

    The orders are ascending, descending and random. ``cumulative_ablation`` is the largest gap by which the accuracy in
    descending order exceeds that in ascending order: positive where kernels of low score matter more.
    ``ablation_ascending``, ``ablation_descending`` and ``ablation_random`` hold, at kernel k − 1, the accuracy with k
    kernels silenced; ``ablation_none`` is the accuracy of the whole model. Kernels without a score count as highest.
    Linear layers have no value. The targets must be one class per input, and the outputs one per class, of at least
    two. A layer of I kernels takes about 3·I forward passes of the split.

    Source: "Exploring the generalizability of CNNs via activated representational substitution", section 3.2.

    Args:
        score: Measure that orders the kernels, ``ARS()`` or ``ClassSelectivity()``; None is ``ARS()``.
        split: Split of the accuracy, ``"train"``, ``"test"`` or ``"validation"``.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> x = torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(0))
        >>> measure = CumulativeAblation(ClassSelectivity())
        >>> ds = genmeasures.measure([net], test=(x, torch.arange(8) % 2), measures=[measure])
        >>> ds.ablation_ascending.dims
        ('model', 'layer', 'kernel')
    """

    name = "cumulative_ablation"
    variables = (
        Variable(
            "cumulative_ablation",
            "largest gap in accuracy between descending and ascending ablation",
            references=_ARS_PAPER + "section 3.2",
        ),
        *(
            Variable(
                f"ablation_{order}",
                f"accuracy with the first kernels in {order} order silenced",
                references=_ARS_PAPER + "section 3.2",
                dims=_PER_KERNEL,
            )
            for order in ORDERS
        ),
        Variable("ablation_none", "accuracy with no kernel silenced", dims=(), auxiliary=True),
    )

    def __init__(self, score: KernelMeasure | None = None, split: Split = "test") -> None:
        valid = score is None or isinstance(score, KernelMeasure)
        require(valid, self, f"score must be ARS(), ClassSelectivity() or another KernelMeasure, got {score!r}")
        one_of(self, "split", split, SPLITS)
        self.score = ARS() if score is None else score
        self.split = split

    def from_targets(self) -> Collection[str]:
        """All variables: they are accuracies."""
        return [variable.name for variable in self.variables]

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`."""
        scores = self.score.kernel_scores(model, layers, data)
        example: Tensor = next(iter(data.batches(self.split)))[0]
        columns: dict[str, list[Any]] = {variable.name: [] for variable in self.variables if variable.dims}
        whole = float("nan")
        for values, traced in zip(scores, convolutions(model, layers, example[:3]), strict=True):
            if isinstance(values, Undefined) or isinstance(traced, Undefined):
                for column in columns.values():
                    column.append(values if isinstance(values, Undefined) else traced)
                continue
            orders = [kernel_order(values, order, data.generator) for order in ORDERS]
            curves = accuracy_curve(model, traced, orders, data.batches(self.split))
            whole = float(curves[0, 0])
            columns["cumulative_ablation"].append(largest_gap(curves[0], curves[1]))
            for order, curve in zip(ORDERS, curves, strict=True):
                columns[f"ablation_{order}"].append(curve[1:])
        return {**columns, "ablation_none": whole}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def best_images(inputs: Tensor, objectives: Tensor) -> NDArray[np.float64] | Undefined:
    """Return the input with the highest objective of each kernel.

    Args:
        inputs: Inputs (S·I, channel, row, column) of S starts of I kernels.
        objectives: float64 (S, I).

    Returns:
        float64 (I, channel, row, column), NaN for a kernel whose objective is not finite, or the reason why there are
        none.

    Example:
        >>> best_images(torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([[0.1, 0.2], [0.3, 0.1]])).ravel()
        array([2., 1.])
    """
    if inputs.dim() != 4:
        shape = tuple(inputs.shape[1:])
        return Undefined(f"images are kept of inputs (channel, row, column), got inputs of the shape {shape}")
    by_start = inputs.unflatten(0, objectives.shape)
    best: Tensor = by_start[objectives.argmax(0), torch.arange(objectives.shape[1], device=inputs.device)].double()
    best[~torch.isfinite(objectives).all(0)] = torch.nan
    images: NDArray[np.float64] = best.cpu().numpy()
    return images


def layer_mean(values: Kernels | Undefined, notes: Sequence[str] = ()) -> float | Value | Undefined:
    """Return the mean over the kernels that have a value, with a note on how many have none.

    Args:
        values: Values (I,), or the reason why there are none.
        notes: Further notes, before that one; "" is none.

    Example:
        >>> layer_mean(np.array([0.2, 0.4, np.nan])).note
        '1 of 3 kernels have no value and are left out'
    """
    if isinstance(values, Undefined):
        return values
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Undefined(f"none of {len(values)} kernels has a value")
    missing = len(values) - len(finite)
    notes = [*notes, *[f"{missing} of {len(values)} kernels have no value and are left out"] * bool(missing)]
    note = "; ".join(filter(None, notes))
    mean = float(finite.mean())
    return Value(mean, note) if note else mean
