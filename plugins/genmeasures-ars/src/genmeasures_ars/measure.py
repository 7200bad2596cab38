"""The measures: what genmeasures calls, layer by layer."""

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
    """A measure with a value for each kernel of a convolution, by which kernels can be ordered."""

    @abc.abstractmethod
    def kernel_scores(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> list[Kernels | Undefined]:
        """For each layer its kernels' values, or the reason why there are none."""


class ARS(KernelMeasure):
    """Activated representational substitution of every kernel: how easily others replace what it stands for.

    For kernel i of a convolution, an input is made from noise that maximizes h_i ("am") or
    h_i − (1/I) Σ_{j≠i} h_j ("iam"), h the mean of a kernel's activation map. RS is the share of kernels
    that exceed i on it, AR the share of entries > 0 in the map of i, ARS = (2/π)·atan(RS/AR), and 1
    where AR = 0 and RS > 0. Where both are 0 no kernel responds: such a kernel has RS and AR, but no
    ARS, and the layer's mean is over the others and says so. A layer whose kernels respond to no
    noise at all, and a linear layer, have a status and no value. No data are read but the shape of an
    input.

    objective: "iam" or "am". steps: of gradient ascent, by which the way is measured. step_size: root
    mean square of an input's change in one step, where that of the noise is 1. growth: the way is gone
    in strides of this share of what lies behind, one step at least: 0.04 makes 130 strides of 1500
    steps, 0 takes them one by one. starts: noise inputs, the same for all layers and kernels; a kernel
    begins at the first that it responds to. memory: MiB that the kernels optimized side by side may
    take; values depend on it by rounding alone.
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
        require(is_count(steps), self, f"steps={steps!r} must be an integer from 1")
        sound = _is_number(step_size) and 0 < step_size < float("inf")
        require(sound, self, f"step_size={step_size!r} must be a number above 0")
        require(_is_number(growth) and 0 <= growth <= 1, self, f"growth={growth!r} must be a number from 0 to 1")
        require(is_count(starts), self, f"starts={starts!r} must be an integer from 1")
        require(is_count(memory), self, f"memory={memory!r} must be an integer of MiB from 1")
        self.objective = objective
        self.steps = steps
        self.step_size = step_size
        self.growth = growth
        self.starts = starts
        self.memory = memory

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`."""
        parts = self._parts(model, layers, data)
        made: dict[str, Any] = {}
        for place, name in enumerate(("rs", "ar", "ars")):
            values = [part if isinstance(part, Undefined) else part[place] for part in parts]
            made[f"{name}_kernel"] = values
            made[name] = [layer_mean(one) for one in values]
        return made

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
            one if isinstance(one, Undefined) else self._layer(model, one, noise)
            for one in convolutions(model, layers, example)
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
                made = ascend(run, noise[begin[chunk]], chunk, self.objective, lengths)
                substitution.append(rs(made.means, chunk))
                response.append(np.where(np.isfinite(made.objective.cpu().numpy()), ar(made.maps), np.nan))
        one, other = np.concatenate(substitution), np.concatenate(response)
        return one, other, ars(one, other)


class ClassSelectivity(KernelMeasure):
    """Class selectivity of every kernel, (μ_max − μ_−max)/(μ_max + μ_−max) of its class-conditional mean activation.

    μ_max is the mean of the class to which the kernel responds most, μ_−max that over the other
    classes. A kernel that is silent for all classes has none, nor one with a negative mean, and the
    layer's mean is over the others and says so. Linear layers have a status and no value.

    split: whose class means. Needs one class an input.
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
            "class_selectivity": [layer_mean(one) for one in values],
            "class_selectivity_kernel": values,
        }

    def kernel_scores(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> list[Kernels | Undefined]:
        """Class selectivity of each kernel."""
        example: Tensor = next(iter(data.batches(self.split)))[0]
        traced = convolutions(model, layers, example[:3])
        chosen = [one for one in traced if not isinstance(one, Undefined)]
        means = {one.layer.name: ClassMeans() for one in chosen}
        classes = torch.empty(0)

        def receive(layer: TracedLayer, given: Tensor, output: Tensor) -> None:
            means[layer.layer.name].add(output, classes)

        if chosen:
            with torch.no_grad(), tapped(model, chosen, receive, stop=True) as tap:
                for inputs, targets in data.batches(self.split):
                    classes = classes_of(targets, self.name)
                    tap.run(inputs)
        return [
            one if isinstance(one, Undefined) else class_selectivity(means[one.layer.name].result()) for one in traced
        ]


class CumulativeAblation(ModelMeasure):
    """Accuracy as a layer's kernels are silenced one after another, in the order of a score of each kernel.

    Three orders: ascending, descending and random. ``cumulative_ablation`` is the largest gap by
    which the accuracy in descending order lies above that in ascending order: positive where kernels
    of low score matter more. ``ablation_ascending``, ``…_descending`` and ``…_random`` hold, at
    kernel k − 1, the accuracy with k kernels silenced; ``ablation_none`` is that of the whole model.
    Kernels without a score count as those of the highest. Linear layers have a status and no value.

    score: what orders the kernels, ARS() or ClassSelectivity(), None for ARS(). split: whose
    accuracy. Needs one class an input, and takes some 3 I forward passes of the split a layer of I
    kernels.
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
        require(valid, self, f"score must be ARS(), ClassSelectivity() or another KernelMeasure, not {score!r}")
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
        made: dict[str, list[Any]] = {variable.name: [] for variable in self.variables if variable.dims}
        whole = float("nan")
        for values, traced in zip(scores, convolutions(model, layers, example[:3]), strict=True):
            if isinstance(values, Undefined) or isinstance(traced, Undefined):
                for column in made.values():
                    column.append(values if isinstance(values, Undefined) else traced)
                continue
            orders = [kernel_order(values, order, data.generator) for order in ORDERS]
            curves = accuracy_curve(model, traced, orders, data.batches(self.split))
            whole = float(curves[0, 0])
            made["cumulative_ablation"].append(largest_gap(curves[0], curves[1]))
            for order, curve in zip(ORDERS, curves, strict=True):
                made[f"ablation_{order}"].append(curve[1:])
        return {**made, "ablation_none": whole}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def layer_mean(values: Kernels | Undefined) -> float | Value | Undefined:
    """Mean over the kernels that have a value, with a remark of how many have none."""
    if isinstance(values, Undefined):
        return values
    found = values[np.isfinite(values)]
    if not len(found):
        return Undefined(f"none of {len(values)} kernels has a value")
    missing = len(values) - len(found)
    mean = float(found.mean())
    return Value(mean, f"{missing} of {len(values)} kernels have no value and are left out") if missing else mean
