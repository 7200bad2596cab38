"""The inputs that activate the kernels of a layer most."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from genmeasures.errors import OptionError
from genmeasures.plot.selection import OneModel, Source, limited
from genmeasures.report.drawing import new_figure, plain

_SOURCE = Source("ars", "measure.ars.keep_images=true")
_COLUMNS = 8
"""Kernels side by side."""


def images(
    ds: xr.Dataset,
    model: str | None = None,
    *,
    layer: str | int = 0,
    measures: Sequence[str] = ("ars",),
    kernels: int = 64,
) -> Figure:
    """Draw the inputs that maximize the activation of each kernel of a layer (AM and IAM), with its ARS.

    With the images of several measures, those of one kernel are one below the other. Each image has its own scale,
    since its values are not bounded: from its smallest value to its largest, for three channels over all of them, else
    in gray the mean over the channels.

    Args:
        ds: a result with the measure ``ars`` of genmeasures-ars and its option ``keep_images``.
        model: name of the model; None for the first.
        layer: name or index of the layer.
        measures: names of ``ars`` in the result, one or several: ``("am", "ars")`` for a run with
            ``+measure@measure.am=ars measure.am.objective=am``.
        kernels: maximum number of kernels.

    Returns:
        The figure.

    Raises:
        OptionError: there is no such model or layer, or an option is invalid.
        ResultError: the result lacks the images, or the layer has none.

    Example:
        >>> dims = ("model", "layer", "kernel", "image_channel", "image_row", "image_column")
        >>> names = {"model": ["net"], "layer_name": (("model", "layer"), [["conv"]])}
        >>> figure = images(xr.Dataset({"ars_image": (dims, np.arange(18.0).reshape(1, 1, 2, 1, 3, 3))}, names))
        >>> len([ax for ax in figure.axes if ax.images])
        2
    """
    if isinstance(measures, str) or not measures:
        raise OptionError(f"measures must be a list of names, such as ['ars'], got {measures!r}")
    rows = [_row(ds, model, layer, measure, limited(kernels, "kernels")) for measure in measures]
    one, place = rows[0][0], rows[0][1]
    shown = sorted(set().union(*(set(found) for _, _, found in rows)))
    columns = min(len(shown), _COLUMNS)
    bands = -(-len(shown) // columns)
    figure = new_figure(1.15 * columns + 0.6, (1.2 * len(rows) + 0.15) * bands + 0.5)
    axes = figure.subplots(bands * len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    for index, kernel in enumerate(shown):
        band, column = divmod(index, columns)
        for row, (model_row, _, found) in enumerate(rows):
            ax = axes[band * len(rows) + row, column]
            ax.set_title(_title(model_row, place, kernel, first=row == 0), fontsize=7, pad=2)
            if kernel in found:
                _draw(ax, found[kernel])
            if column == 0:
                ax.set_ylabel(_objective(model_row), fontsize=9)
    figure.suptitle(textwrap.fill(f"{plain(one.name)}, {plain(one.layers[place])}", 20 * columns), fontsize=10)
    return figure


def _row(
    ds: xr.Dataset, model: str | None, layer: str | int, measure: str, kernels: int
) -> tuple[OneModel, int, dict[int, NDArray[np.float64]]]:
    """The model as one measure has seen it, the index of the layer, and images (channel, row, column) by kernel."""
    one = OneModel(ds, model, _SOURCE, measure)
    (place,) = one.layer_indices("ars_image", [layer])
    array = one.array("ars_image").isel(layer=place)
    values = array.transpose("kernel", "image_channel", "image_row", "image_column").values
    finite = [kernel for kernel in range(len(values)) if np.isfinite(values[kernel]).any()]
    return one, place, {kernel: values[kernel] for kernel in finite[:kernels]}


def _title(one: OneModel, layer: int, kernel: int, first: bool) -> str:
    """The number of the kernel, and its ARS."""
    score = ""
    if one.has("ars_kernel"):
        value = float(one.array("ars_kernel").isel(layer=layer, kernel=kernel))
        score = f"ARS {value:.2f}" if np.isfinite(value) else "no ARS"
    return ", ".join(part for part in (f"kernel {kernel}" if first else "", score) if part)


def _objective(one: OneModel) -> str:
    """AM or IAM, as the result states the options of the measure."""
    stated = re.search(r"objective='(am|iam)'", one.described("ars_image"))
    return stated[1].upper() if stated else ""


def _draw(ax: Any, image: NDArray[np.float64]) -> None:
    """An image (channel, row, column): in color with three channels, else in gray."""
    image = image[np.isfinite(image).any((1, 2))]  # smaller inputs are padded
    image = image[:, np.isfinite(image).any((0, 2))][:, :, np.isfinite(image).any((0, 1))]
    low, high = float(np.nanmin(image)), float(np.nanmax(image))
    scaled = (image - low) / (high - low) if high > low else np.full_like(image, 0.5)
    if len(scaled) == 3:
        ax.imshow(scaled.transpose(1, 2, 0), interpolation="nearest")
    else:
        ax.imshow(scaled.mean(0), cmap="gray", interpolation="nearest")
