"""The components of the core, registered like everyone else's."""

from __future__ import annotations

from genmeasures import aggregators, extractors, labelers, measures, tasks
from genmeasures.registry.specs import Register, hookimpl


@hookimpl
def genmeasures_register_extractors(register: Register) -> None:
    register(extractors.ReceptiveField)
    register(extractors.WholeTensor)


@hookimpl
def genmeasures_register_labelers(register: Register) -> None:
    register(labelers.ClassLabel)
    register(labelers.Downsampled)
    register(labelers.Histogram)
    register(labelers.KMeans)


@hookimpl
def genmeasures_register_measures(register: Register) -> None:
    register(measures.DaviesBouldin)
    register(measures.Roughness)
    register(measures.Confidence)


@hookimpl
def genmeasures_register_aggregators(register: Register) -> None:
    for aggregator in (
        aggregators.Frobenius,
        aggregators.Mean,
        aggregators.Max,
        aggregators.LastK,
        aggregators.Explicit,
        aggregators.SingleLayer,
    ):
        register(aggregator)


@hookimpl
def genmeasures_register_tasks(register: Register) -> None:
    register(tasks.DigitsCNN)
    register(tasks.Checkpoints)


@hookimpl
def genmeasures_config_packages() -> list[str]:
    return ["genmeasures.conf"]
