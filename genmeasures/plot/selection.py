"""What a result holds of one model, and errors that say how to get what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.errors import OptionError, ResultError, nearest
from genmeasures.interfaces import is_count
from genmeasures.registry.known_plugins import plugin_of
from genmeasures.results.schema import STATUS, is_measured


@dataclass(frozen=True)
class Source:
    """The measure that writes the variables of a figure."""

    measure: str
    """Name of the measure."""
    options: str = ""
    """Overrides that it needs besides, such as ``measure.ars.keep_images=true``."""

    @property
    def command(self) -> str:
        """The command that writes the variables."""
        return f"genmeasures run measure=[{self.measure}] {self.options}".strip()


class OneModel:
    """One model of a result.

    Args:
        ds: a result, not aggregated.
        model: name of the model; None for the first.
        source: the measure that the figure needs.
        measure: name that this measure has in the result.

    Raises:
        OptionError: there is no such model.
        ResultError: the result has no model, or the model failed.

    Example:
        >>> ds = xr.Dataset({"m": ("model", [0.5, 0.7])}, {"model": ["a", "b"]})
        >>> OneModel(ds, "b", Source("m"), "m").number("m")
        0.7
    """

    def __init__(self, ds: xr.Dataset, model: str | None, source: Source, measure: str) -> None:
        names = [str(name) for name in ds["model"].values] if "model" in ds.coords else []
        if not names:
            raise ResultError("the result has no models")
        if model is not None and model not in names:
            raise OptionError(f"the result has no model {model!r}{nearest(model, names)}")
        place = 0 if model is None else names.index(model)
        self.name = names[place]
        self._ds, self._place, self._source, self._measure = ds, place, source, measure
        status = str(ds["model_status"].values[place]) if "model_status" in ds.coords else "ok"
        if not is_measured(np.array([status]))[0]:
            raise ResultError(f"the model {self.name!r} has no values: {status}")
        layers = ds["layer_name"].values[place] if "layer_name" in ds.coords else []
        self.layers = [str(name) for name in layers if str(name)]

    def renamed(self, variable: str) -> str:
        """The name in the result of a variable of the measure: see :meth:`genmeasures.interfaces.Measure.written`."""
        own = self._source.measure
        if self._measure == own:
            return variable
        if variable == own or variable.startswith(f"{own}_"):
            return f"{self._measure}{variable[len(own) :]}"
        return f"{self._measure}_{variable}"

    def has(self, variable: str) -> bool:
        """Whether the result has a variable of the measure."""
        return self.renamed(variable) in self._ds

    def array(self, variable: str) -> xr.DataArray:
        """A variable of the measure, of this model.

        Raises:
            ResultError: the result does not have it; the message says under which name the result has it, or names the
                measure, its plugin and the command.
        """
        name = self.renamed(variable)
        if name not in self._ds:
            raise ResultError(f"the result has no variable {name!r}, {self._remedy(variable)}")
        return self._ds[name].isel(model=self._place)

    def _remedy(self, variable: str) -> str:
        """Where the result has a variable under another name of the measure, else the command that writes it."""
        own = self._source.measure
        if variable in self._ds:
            return f"but {variable!r} of the measure {own}, which is not renamed: leave out --measure"
        ending = variable[len(own) :] if variable.startswith(f"{own}_") else f"_{variable}"
        stated = {
            str(name).removesuffix(ending): str(found.attrs.get("measure", "")) for name, found in self._ds.items()
        }
        # Other variables can end in the same way: a renamed measure is stated after its name and "=".
        renamed = sorted(
            name for name, measure in stated.items() if f"{name}{ending}" in self._ds and measure.startswith(f"{name}=")
        )
        hint = f" (in this result, renamed measures have it: {', '.join(renamed)}; set --measure)" if renamed else ""
        plugin = plugin_of("measure", own)
        of = f" of the plugin genmeasures-{plugin}" if plugin else ""
        return f"which the measure {own}{of} writes{hint}: {self._source.command}"

    def number(self, variable: str) -> float:
        """A variable with one value per model."""
        return float(self.array(variable))

    def described(self, variable: str) -> str:
        """The measure with its options that wrote a variable, as the result states it."""
        return str(self.array(variable).attrs.get("measure", ""))

    def status(self, variable: str, layer: int | None = None) -> str:
        """The status of a variable, "ok" where the result has none."""
        name = f"{self.renamed(variable)}{STATUS}"
        if name not in self._ds:
            return "ok"
        status = self._ds[name].isel(model=self._place)
        return str(status.values if layer is None else status.isel(layer=layer).values)

    def require(self, variable: str) -> NDArray[np.float64]:
        """A variable without layers, float64, that has a value.

        Raises:
            ResultError: it has none; the message is its status.
        """
        values = self.array(variable).values.astype(np.float64)
        if not np.isfinite(values).any():
            raise ResultError(
                f"{self.renamed(variable)} of the model {self.name!r} has no value: {self.status(variable)}"
            )
        return values

    def layer_indices(self, variable: str, layers: Sequence[str | int] | None) -> list[int]:
        """Indices of the layers that are drawn: those asked for, or all that have a value of the variable.

        Raises:
            OptionError: there is no such layer.
            ResultError: a layer that is asked for, or every layer, has no value; the message is its status.
        """
        values = self.array(variable).transpose("layer", ...).values
        known = [bool(np.isfinite(values[index]).any()) for index in range(len(self.layers))]
        chosen = range(len(self.layers)) if layers is None else [self._layer(layer) for layer in layers]
        lacking = [index for index in chosen if not known[index]]
        if lacking and (layers is not None or len(lacking) == len(chosen)):
            raise ResultError(
                f"{self.renamed(variable)} of the layer {self.layers[lacking[0]]!r} has no value: "
                f"{self.status(variable, lacking[0])}"
            )
        return [index for index in chosen if known[index]]

    def _layer(self, layer: str | int) -> int:
        if isinstance(layer, str) and layer in self.layers:
            return self.layers.index(layer)
        if isinstance(layer, int) and -len(self.layers) <= layer < len(self.layers):
            return layer % len(self.layers)
        raise OptionError(f"the model {self.name!r} has no layer {layer!r}{nearest(str(layer), self.layers)}")


def limited(count: object, name: str) -> int:
    """An option that is an integer ≥ 1.

    Args:
        count: its value.
        name: its name.

    Raises:
        OptionError: it is not.

    Example:
        >>> limited(3, "columns")
        3
    """
    if not is_count(count):
        raise OptionError(f"{name} must be an integer ≥ 1, got {count!r}")
    assert isinstance(count, int)
    return count
