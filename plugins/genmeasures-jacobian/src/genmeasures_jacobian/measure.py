"""Norm of the input-output Jacobian, with bounds from the cross-entropy, as a measure of genmeasures."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genmeasures.plugin import (
    Layer,
    ModelData,
    ModelMeasure,
    Split,
    Undefined,
    Value,
    Variable,
    class_problem,
    one_of,
)
from genmeasures_jacobian.bounds import approximation, lower_bound, upper_bound
from genmeasures_jacobian.inputs import (
    check_finite,
    check_sampling,
    choose,
    chunks,
    fitting_rows,
    frozen,
    seed_base,
)
from genmeasures_jacobian.jacobian import Run, Squares, exact_backward, exact_forward, hutchinson, outputs, runner
from genmeasures_jacobian.projections import norms
from genmeasures_jacobian.softmax import Softmax

log = logging.getLogger(__name__)

_REFERENCES = "Novak et al. 2018, Sensitivity and Generalization in Neural Networks"

EXACT = 128
"""Outputs and inputs with more elements than this are estimated by ``method="auto"``."""

_FROM_TARGETS = (
    "jacobian_norm_target",
    "jacobian_norm_lower",
    "jacobian_norm_upper",
    "jacobian_norm_approximation",
    "jacobian_norm_below",
    "jacobian_norm_above",
    "jacobian_norm_sample_target",
    "jacobian_norm_sample_loss",
    "jacobian_norm_sample_correct",
    "jacobian_norm_sample_lower",
    "jacobian_norm_sample_upper",
    "jacobian_norm_sample_approximation",
)
_ROUNDING = 1e-5
"""Relative difference by which a norm must pass a bound to lie outside of it. For two classes both bounds are equal."""


def _auxiliary(name: str, long_name: str, dims: tuple[str, ...] = ()) -> Variable:
    return Variable(name, long_name, references=_REFERENCES, bounds=(0.0, math.inf), dims=dims, auxiliary=True)


class JacobianNorm(ModelMeasure):
    """Mean Frobenius norm of the input-output Jacobian, E_x ‖J(x)‖_F with J(x) = ∂ softmax(f(x))/∂x.

    The model has the following values: the norm; ``jacobian_norm_error``, the standard error of its estimate over
    random projections and not over inputs, 0 where the norm is exact; the mean norm ‖J_y‖₂ of the row of the true
    class; M, the mean over inputs of Σ_j ‖g_j − ḡ‖²/(n − 1) for the gradients g_j of the n logits and their mean ḡ; the
    means over inputs of the cross-entropy bounds and approximation; and the fractions of inputs whose ‖J_y‖₂ is below
    the lower or above the upper bound, by more than rounding. The lower bound is one of ‖J_y‖₂ and ‖J‖_F, the upper
    bound one of ‖J_y‖₂ alone, and the approximation one of ‖J‖_F; they assume that the centered gradients of the logits
    have the shape of a regular simplex, which those of two logits always have, and are alike at all inputs. Each input
    has its norm, and its index in the split, in the order of ``ModelData.sample``, which is the same for all models;
    with true classes it has ‖J_y‖₂, its cross-entropy, 1 or 0 for a correct or wrong prediction, its bounds and its
    approximation. What needs true classes is undefined without them, for dense outputs and for logits; inputs without a
    label are left out of it.

    Source: Novak et al. 2018, "Sensitivity and Generalization in Neural Networks".

    Args:
        output: ``"softmax"``, or ``"logits"``, whose Jacobian norm correlates less with generalization in the paper.
        method: ``"auto"``, ``"exact"`` or ``"hutchinson"``. ``"exact"`` takes one backward pass per output or one
            forward-mode pass per element of the input, whichever is fewer; ``"hutchinson"`` estimates the norm from
            random projections; ``"auto"`` estimates where outputs and inputs both have more than 128 elements.
        reduction: ``"sum"`` or ``"mean"`` of ‖J‖_F² over the P positions of a dense output (B, C, *S). The sum is the
            norm of the Jacobian of the whole output; the mean, smaller by √P, compares outputs of different sizes.
        projections: Number of random projections of each input in an estimate.
        samples: Maximum number of inputs; None takes all.
        split: Split of the inputs, ``"train"`` or ``"test"``.
        memory: Approximate MiB for a batch.

    Raises:
        OptionError: If an option is out of range.

    Example:
        >>> import genmeasures
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> ds = genmeasures.measure([net], test=torch.rand(8, 2), measures=[JacobianNorm(output="logits")])
        >>> round(ds.jacobian_norm.item(), 4)
        5.0
    """

    name = "jacobian_norm"
    variables = (
        Variable(
            "jacobian_norm",
            "mean Frobenius norm of the input-output Jacobian",
            expected_accuracy=-1,
            expected_accuracy_source="Novak et al. 2018: networks without training error, whose gap is the test error",
            expected_gap=1,
            expected_gap_source="Novak et al. 2018, sensitivity and the generalization gap",
            references=_REFERENCES,
            bounds=(0.0, math.inf),
            dims=(),
        ),
        _auxiliary(
            "jacobian_norm_error", "standard error of the mean Jacobian norm over random projections, not inputs"
        ),
        _auxiliary("jacobian_norm_target", "mean norm of the Jacobian's row of the true class"),
        _auxiliary("jacobian_norm_lower", "mean cross-entropy lower bound on the Jacobian norm"),
        _auxiliary("jacobian_norm_upper", "mean cross-entropy upper bound on the norm of the true class's row"),
        _auxiliary("jacobian_norm_approximation", "mean cross-entropy approximation of the Jacobian norm"),
        _auxiliary("logit_gradient_square", "mean square norm of the centered gradient of a logit"),
        _auxiliary("jacobian_norm_below", "fraction of inputs whose true class's row is below the lower bound"),
        _auxiliary("jacobian_norm_above", "fraction of inputs whose true class's row is above the upper bound"),
        Variable(
            "jacobian_norm_sample",
            "Frobenius norm of the Jacobian at each input",
            references=_REFERENCES,
            bounds=(0.0, math.inf),
            dims=("sample",),
        ),
        _auxiliary("jacobian_norm_sample_target", "norm of the true class's row at each input", ("sample",)),
        _auxiliary("jacobian_norm_sample_loss", "cross-entropy of each input", ("sample",)),
        _auxiliary("jacobian_norm_sample_correct", "1 if an input is classified correctly, else 0", ("sample",)),
        _auxiliary("jacobian_norm_sample_lower", "cross-entropy lower bound at each input", ("sample",)),
        _auxiliary("jacobian_norm_sample_upper", "cross-entropy upper bound at each input", ("sample",)),
        _auxiliary("jacobian_norm_sample_approximation", "cross-entropy approximation at each input", ("sample",)),
        _auxiliary("jacobian_norm_sample_index", "index of each input in its split", ("sample",)),
    )

    def __init__(
        self,
        output: str = "softmax",
        method: str = "auto",
        reduction: str = "sum",
        projections: int = 32,
        samples: int | None = 1000,
        split: Split = "test",
        memory: int = 256,
    ) -> None:
        one_of(self, "output", output, ("softmax", "logits"))
        one_of(self, "method", method, ("auto", "exact", "hutchinson"))
        one_of(self, "reduction", reduction, ("sum", "mean"))
        check_sampling(self, projections, samples, split, memory)
        self.output = output
        self.method = method
        self.reduction = reduction
        self.projections = projections
        self.samples = samples
        self.split = split
        self.memory = memory

    def from_targets(self) -> Collection[str]:
        """Variables that need the true classes."""
        return _FROM_TARGETS

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`. Values per input are float64 (N,) for N sampled inputs.

        Raises:
            Undefined: If no value can be computed.
            ModelError: If the output is not one tensor.
        """
        base = seed_base(data.generator)
        inputs, targets = choose(data, self.split, self.samples)
        run = runner(model)
        with frozen(model):
            logits = outputs(run, inputs[:2])
            _, channels, positions = logits.shape
            if self.output == "softmax" and channels == 1:
                raise Undefined("the softmax of a single output is constant: set output=logits")
            reason = self._no_classes(targets, channels, positions)
            classes = None if reason or targets is None else targets[:, 0]
            # Inputs without a label, −1, have class 0 here; their values are left out below.
            known = None if classes is None else classes.clamp(min=0)
            parts = self._squares(model, run, inputs, known, logits[0].numel(), base)
        squares = torch.cat([part.jacobian for part in parts], 1).cpu()
        squares = squares / positions if self.reduction == "mean" else squares
        values, errors = (squares[0].sqrt(), torch.zeros(1, device="cpu")) if len(squares) == 1 else norms(squares)
        check_finite(values)
        sure = self.output == "softmax" and all(_are_probabilities(part.output) for part in parts)
        note = "softmax was applied to outputs that are already probabilities" if sure else ""
        values_by_name: dict[str, Any] = {
            "jacobian_norm": Value(float(values.mean()), note),
            "jacobian_norm_error": float(errors.double().square().sum().sqrt()) / len(values),
            "jacobian_norm_sample": values.numpy(),
            "jacobian_norm_sample_index": data.order(self.split)[: len(values)].astype(np.float64),
        }
        if classes is None:
            names = [variable.name for variable in self.variables if variable.name not in values_by_name]
            return {**values_by_name, **dict.fromkeys(names, Undefined(f"the cross-entropy bounds need {reason}"))}
        return {**values_by_name, **_bounds(parts, classes, channels)}

    def _squares(
        self, model: nn.Module, run: Run, inputs: Tensor, classes: Tensor | None, count: int, base: int
    ) -> list[Squares]:
        """Square norms of all inputs (N, …), batch by batch; ``count`` is the number of elements of one output."""
        softmax = self.output == "softmax"
        size = inputs[0].numel()
        exact = self.method == "exact" or (self.method == "auto" and min(count, size) <= EXACT)
        rows = fitting_rows(model, run, inputs[:2], self.memory)
        forward = exact and size < count
        parts: list[Squares] = []
        for part in chunks(len(inputs), rows):
            batch = inputs[part]
            own = None if classes is None else classes[part]
            if forward:
                try:
                    parts.append(exact_forward(run, batch, softmax, own, rows))
                    continue
                except (NotImplementedError, RuntimeError) as error:
                    # Few functions have no forward derivative. Any other error occurs in the backward pass as well.
                    log.debug("no forward-mode differentiation", exc_info=error)
                    forward = False
            if exact:
                parts.append(exact_backward(run, batch, softmax, own))
            else:
                seeds = range(base + part.start, base + part.stop)
                parts.append(hutchinson(run, batch, softmax, seeds, self.projections, own))
        return parts

    def _no_classes(self, targets: Tensor | None, channels: int, positions: int) -> str:
        """What the cross-entropy bounds need and do not have, or an empty string."""
        if self.output != "softmax":
            return "output=softmax"
        if positions > 1:
            return "one output position per input, got dense outputs"
        problem = class_problem(targets)
        if targets is None or problem:
            return problem
        labels = targets[targets >= 0]
        if not len(labels):
            return "labels, and no input has a label"
        if int(labels.max()) >= channels:
            return f"classes from 0 to {channels - 1}, got {int(labels.min())} to {int(labels.max())}"
        return ""


def _bounds(parts: Sequence[Squares], classes: Tensor, channels: int) -> dict[str, Any]:
    """Values that need the true classes, int64 (N,), −1 where there is no label."""
    own = torch.cat([part.target for part in parts if part.target is not None]).cpu()
    gradients = torch.cat([part.centered for part in parts if part.centered is not None], 1).cpu()
    logits = torch.cat([part.output for part in parts]).cpu()
    labeled = (classes >= 0).cpu().numpy()
    softmax = Softmax(logits)
    loss = softmax.cross_entropy(classes.clamp(min=0).cpu()).numpy()
    correct = (softmax.first[:, 0, 0] == classes.cpu()).numpy()
    square = float(gradients.mean()) / (channels - 1)
    norm, lower, upper = own.sqrt().numpy(), lower_bound(loss, square, channels), upper_bound(loss, square)
    near = approximation(loss, square, channels)
    below, above = norm < lower * (1 - _ROUNDING), norm > upper * (1 + _ROUNDING)
    by_input = {"target": norm, "loss": loss, "correct": correct}
    by_input |= {"lower": lower, "upper": upper, "approximation": near}
    return {
        "jacobian_norm_target": float(norm[labeled].mean()),
        "jacobian_norm_lower": float(lower[labeled].mean()),
        "jacobian_norm_upper": float(upper[labeled].mean()),
        "jacobian_norm_approximation": float(near[labeled].mean()),
        "jacobian_norm_below": float(below[labeled].mean()),
        "jacobian_norm_above": float(above[labeled].mean()),
        "logit_gradient_square": square,
        **{f"jacobian_norm_sample_{name}": np.where(labeled, values, np.nan) for name, values in by_input.items()},
    }


def _are_probabilities(output: Tensor) -> bool:
    """Whether outputs (B, C, P) are nonnegative and sum to 1 over the channels."""
    return bool((output >= 0).all()) and bool(((output.double().sum(1) - 1).abs() < 1e-4).all())
