"""ARS, class selectivity and cumulative ablation as measures of genmeasures."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
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
from genmeasures_ars.network import convolutions, example_of, truncated
from genmeasures_ars.scores import ar, ars, rs
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


class ARS(KernelMeasure):
    """Activated representational substitution (ARS): how easily other kernels replace a kernel.

    For kernel i of a convolution with I kernels, gradient ascent from noise finds an input that maximizes h_i (``am``)
    or h_i − (1/I) Σ_{j≠i} h_j (``iam``), where h is the mean of a kernel's activation map. On this input, RS is the
    fraction of kernels whose mean exceeds that of i, AR is the fraction of entries > 0 in the map of i, and
    ARS = (2/π)·atan(RS/AR), which is 1 where AR = 0 and RS > 0. If no kernel responds (RS = AR = 0), the kernel has no
    ARS; the mean over the layer leaves it out, with a note. Linear layers, and layers whose kernels do not respond to
    any noise input, have no value. The data are not read, only the shape of an input.

    Source: "Exploring the generalizability of CNNs via activated representational substitution", equations 1 to 5.

    Args:
        objective: ``"iam"``, which suppresses the other kernels, or ``"am"``.
        steps: Number of steps of gradient ascent, the length of the path.
        step_size: Root mean square of the change of an input in one step; that of the noise is 1.
        growth: Length of a stride as a fraction of the path before it, at least one step. 0.04 takes 130 strides for
            1500 steps; 0 takes each step.
        starts: Number of noise inputs, of which each kernel starts at the first that it responds to. They are the same
            for all layers and kernels.
        memory: MiB for the kernels that are optimized side by side. Values depend on it by rounding alone.

    Raises:
        OptionError: If an option is out of range.

    Example:
        >>> import genmeasures
        >>> net = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU())
        >>> with torch.no_grad():  # three equal kernels: none exceeds another
        ...     _ = net[0].weight.fill_(1.0)
        >>> ds = genmeasures.measure([net], test=torch.rand(4, 1, 5, 5), measures=[ARS(steps=5)])
        >>> ds.rs.item(), ds.ars.item()
        (0.0, 0.0)
    """

    name = "ars"
    variables = (
        Variable(
            "ars",
            "mean activated representational substitution",
            expected_accuracy=-1,
            expected_accuracy_source=_ARS_PAPER + "table 2",
            references=_ARS_PAPER + "eq. 5",
        ),
        Variable("rs", "mean representational substitution", references=_ARS_PAPER + "eq. 3"),
        Variable("ar", "mean activated response", references=_ARS_PAPER + "eq. 4"),
        Variable(
            "ars_kernel", "activated representational substitution", references=_ARS_PAPER + "eq. 5", dims=_PER_KERNEL
        ),
        Variable("rs_kernel", "representational substitution", references=_ARS_PAPER + "eq. 3", dims=_PER_KERNEL),
        Variable("ar_kernel", "activated response", references=_ARS_PAPER + "eq. 4", dims=_PER_KERNEL),
    )

    def __init__(
        self,
        objective: str = "iam",
        steps: int = 1500,
        step_size: float = 0.1,
        growth: float = 0.04,
        starts: int = 16,
        memory: int = 256,
    ) -> None:
        one_of(self, "objective", objective, OBJECTIVES)
        require(is_count(steps), self, f"steps must be an integer ≥ 1, got {steps!r}")
        sound = _is_number(step_size) and 0 < step_size < float("inf")
        require(sound, self, f"step_size must be a number > 0, got {step_size!r}")
        require(_is_number(growth) and 0 <= growth <= 1, self, f"growth must be a number from 0 to 1, got {growth!r}")
        require(is_count(starts), self, f"starts must be an integer ≥ 1, got {starts!r}")
        require(is_count(memory), self, f"memory must be an integer ≥ 1 (MiB), got {memory!r}")
        self.objective = objective
        self.steps = steps
        self.step_size = step_size
        self.growth = growth
        self.starts = starts
        self.memory = memory

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`."""
        parts = self._parts(model, layers, data)
        values: dict[str, Any] = {}
        for index, name in enumerate(("rs", "ar", "ars")):
            kernels = [part if isinstance(part, Undefined) else part[index] for part in parts]
            values[f"{name}_kernel"] = kernels
            values[name] = [layer_mean(layer) for layer in kernels]
        return values

    def kernel_scores(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> list[Kernels | Undefined]:
        """ARS of each kernel."""
        return [part if isinstance(part, Undefined) else part[2] for part in self._parts(model, layers, data)]

    def _parts(
        self, model: nn.Module, layers: Sequence[Layer], data: ModelData
    ) -> list[tuple[Kernels, Kernels, Kernels] | Undefined]:
        """RS, AR and ARS of each layer's kernels."""
        example = example_of(data)
        size, generator = (self.starts, *example.shape[1:]), data.generator
        noise = torch.randn(size, generator=generator, dtype=torch.float32, device=generator.device).to(example)
        return [
            layer if isinstance(layer, Undefined) else self._layer(model, layer, noise)
            for layer in convolutions(model, layers, example)
        ]

    def _layer(
        self, model: nn.Module, layer: TracedLayer, noise: Tensor
    ) -> tuple[Kernels, Kernels, Kernels] | Undefined:
        substitution: list[Kernels] = []
        response: list[Kernels] = []
        with truncated(model, layer) as run:
            begin, responds = begin_at(run, noise)
            if not responds.any():
                return Undefined(f"no kernel responds to any of {self.starts} noise inputs")
            lengths = strides(self.steps, self.step_size, self.growth)
            kernels = torch.arange(layer.layer.channels, device=noise.device)
            batch = fitting_batch(run, noise[:1], list(model.parameters()), self.memory * 2**20)
            for chunk in kernels.split(batch):
                ascent = ascend(run, noise[begin[chunk]], chunk, self.objective, lengths)
                substitution.append(rs(ascent.means, chunk))
                response.append(np.where(np.isfinite(ascent.objective.cpu().numpy()), ar(ascent.maps), np.nan))
        substitutions, responses = np.concatenate(substitution), np.concatenate(response)
        return substitutions, responses, ars(substitutions, responses)


class ClassSelectivity(KernelMeasure):
    """Class selectivity of kernels, (μ_max − μ_−max)/(μ_max + μ_−max) of class-conditional mean activations.

    μ_max is the mean of the class to which the kernel responds most, μ_−max the mean over the other classes. A kernel
    that is silent for all classes, or has a negative mean, has no value; the mean over the layer leaves it out, with a
    note. Linear layers have no value. The targets must be one class per input.

    Source: Morcos et al. 2018, "On the importance of single directions for generalization".

    Args:
        split: Split of the class means, ``"train"`` or ``"test"``.

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
    Linear layers have no value. The targets must be one class per input. A layer of I kernels takes about 3·I forward
    passes of the split.

    Source: "Exploring the generalizability of CNNs via activated representational substitution", section 3.2.

    Args:
        score: Measure that orders the kernels, ``ARS()`` or ``ClassSelectivity()``; None is ``ARS()``.
        split: Split of the accuracy, ``"train"`` or ``"test"``.

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


def layer_mean(values: Kernels | Undefined) -> float | Value | Undefined:
    """Return the mean over the kernels that have a value, with a note on how many have none.

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
    mean = float(finite.mean())
    return Value(mean, f"{missing} of {len(values)} kernels have no value and are left out") if missing else mean
