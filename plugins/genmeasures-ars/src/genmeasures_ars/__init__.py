"""Activated representational substitution (ARS), class selectivity and cumulative ablation, as genmeasures measures."""

from __future__ import annotations

from genmeasures.plugin import Register, hookimpl
from genmeasures_ars.ablation import accuracy_curve, kernel_order, largest_gap
from genmeasures_ars.maximization import Ascent, ascend, begin_at, fitting_batch, strides
from genmeasures_ars.measure import ARS, ClassSelectivity, CumulativeAblation, KernelMeasure
from genmeasures_ars.network import truncated
from genmeasures_ars.scores import ar, ars, rs, standard_error
from genmeasures_ars.selectivity import ClassMeans, class_selectivity

__all__ = [
    "ARS",
    "Ascent",
    "ClassMeans",
    "ClassSelectivity",
    "CumulativeAblation",
    "KernelMeasure",
    "accuracy_curve",
    "ar",
    "ars",
    "ascend",
    "begin_at",
    "class_selectivity",
    "fitting_batch",
    "kernel_order",
    "largest_gap",
    "rs",
    "standard_error",
    "strides",
    "truncated",
]


@hookimpl
def genmeasures_register(register: Register) -> None:
    register(ARS)
    register(ClassSelectivity)
    register(CumulativeAblation)
