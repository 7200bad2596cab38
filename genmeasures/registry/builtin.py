"""Registration of the core's components, through the same hook as those of plugins."""

from __future__ import annotations

from genmeasures import aggregators, extractors, labelers, measures, tasks
from genmeasures.registry.specs import Register, hookimpl


@hookimpl
def genmeasures_register(register: Register) -> None:
    """Register the components of the core.

    Args:
        register: takes one class.

    Example:
        >>> classes = []
        >>> genmeasures_register(classes.append)
        >>> labelers.KMeans in classes
        True
    """
    for component in (
        extractors.ReceptiveField,
        extractors.WholeTensor,
        labelers.ClassLabel,
        labelers.Downsampled,
        labelers.Histogram,
        labelers.KMeans,
        measures.DaviesBouldin,
        measures.Roughness,
        measures.Confidence,
        aggregators.Frobenius,
        aggregators.Mean,
        aggregators.MeanWeight,
        aggregators.Max,
        aggregators.LastK,
        aggregators.Explicit,
        aggregators.SingleLayer,
        tasks.DigitsCNN,
        tasks.Checkpoints,
    ):
        register(component)


@hookimpl
def genmeasures_config_packages() -> list[str]:
    """Name the config package of the core.

    Example:
        >>> genmeasures_config_packages()
        ['genmeasures.conf']
    """
    return ["genmeasures.conf"]
