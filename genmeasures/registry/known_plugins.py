"""Plugins that extras of the core install, and what they provide.

The table is for error messages: it names the package of a component that is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping

PLUGINS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "ars": {"measure": ("ars", "class_selectivity", "cumulative_ablation")},
    "geometry": {
        "measure": (
            "class_separation",
            "feature_spectrum",
            "intrinsic_dimension",
            "neural_collapse",
            "silhouette",
            "split_shift",
            "transferability",
        )
    },
    "jacobian": {"measure": ("jacobian_norm", "layer_jacobian", "reinitialization")},
    "outputs": {"measure": ("calibration", "output_confidence", "output_distribution", "output_margin")},
    "pgdl": {"task": ("pgdl",), "experiment": ("pgdl",)},
    "transitions": {"measure": ("region_count", "transition_count")},
    "unet": {
        "task": ("unet", "unet_denoising"),
        "experiment": ("unet_denoising", "unet_few_cases", "unet_hippocampus"),
    },
}
"""Names by plugin and by kind of component or ``experiment``. Plugins are named like their entry points and extras."""


def plugin_of(kind: str, name: str) -> str | None:
    """Return the plugin that provides a component, or None.

    Args:
        kind: kind of the component, "experiment", or "component" for all kinds and for the plugins themselves.
        name: name of the component.

    Example:
        >>> plugin_of("measure", "jacobian_norm"), plugin_of("component", "transitions")
        ('jacobian', 'transitions')
    """
    for plugin, names in PLUGINS.items():
        if kind == "component":
            provided = [plugin, *(own for names_of_kind in names.values() for own in names_of_kind)]
        else:
            provided = [*names.get(kind, ())]
        if name in provided:
            return plugin
    return None
