"""Interfaces that plugins implement, and the types that pass between them.

``Task ─► models + data ─► Extractor ─► Labeler ─► Measure ─► Dataset(model, layer) ─► Aggregator``

Shapes: B inputs in a batch, n vectors (sampled pixels, or whole inputs), k channels, d PCA
components, D elements of a flattened patch, P positions of a layer (product of its spatial size).
Features are float32, statistics float64, labels int64.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import difflib
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.errors import ComponentError, GenmeasuresError, OptionError, Undefined, nearest

Split: TypeAlias = Literal["train", "test", "validation"]
Field: TypeAlias = Literal[
    "vectors",
    "projected",
    "projected_apart",
    "patches",
    "patch_set",
    "projected_patches",
    "patch_projection",
    "labels",
]
FieldValue: TypeAlias = "Tensor | PatchSet | tuple[Tensor, Tensor]"
SPLITS: tuple[Split, ...] = ("train", "test", "validation")
"""Splits of the data: training data, test data, and labeled data like the training data that no model was trained on.
"""
TAPS = ("activation", "linear", "block")
"""Where the output of a layer can be read."""
_HELD_BACK = 4
"""One of so many inputs is held back."""
SampleName: TypeAlias = Literal["fit", "train", "test", "validation"]
"""Samples that a pass is over: that of a split, or the part of the training sample that fits see."""


def split_of(sample: SampleName, available: Collection[Split] = SPLITS) -> Split:
    """The split that a pass reads: without training data, fits see the test data, or else the validation data.

    Args:
        sample: name of the sample.
        available: splits that the run has data of.

    Example:
        >>> split_of("fit"), split_of("fit", ["test"])
        ('train', 'test')
    """
    if sample == "fit":
        return next((split for split in SPLITS if split in available), "train")
    return sample


def is_held_back(inputs: Tensor) -> Tensor:
    """Whether inputs are held back from the fit of ``projected_apart``: one of four.

    Args:
        inputs: int64 (n,), ranks of inputs by their contents; copies of an input, which share its rank, are held back
            together.

    Returns:
        bool (n,).

    Example:
        >>> is_held_back(torch.arange(6)).tolist()
        [False, False, False, True, False, False]
    """
    return inputs % _HELD_BACK == _HELD_BACK - 1


def require(condition: bool, component: object, message: str) -> None:
    """Check an option of a component.

    Args:
        condition: whether the option is valid.
        component: the component, usually ``self`` in ``__init__``.
        message: what is wrong, after the name of the component.

    Raises:
        OptionError: the condition is false.

    Example:
        >>> class Toy: ...
        >>> require(False, Toy(), "k must be an integer ≥ 2, got 1")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: Toy: k must be an integer ≥ 2, got 1
    """
    if not condition:
        raise OptionError(f"{type(component).__name__}: {message}")


def one_of(component: object, option: str, value: object, allowed: Sequence[object]) -> None:
    """Check an option that takes one of a few values.

    Args:
        component: the component, usually ``self`` in ``__init__``.
        option: name of the option.
        value: its value.
        allowed: the valid values.

    Raises:
        OptionError: the value is not one of them.

    Example:
        >>> class Toy: ...
        >>> one_of(Toy(), "init", "randon", ("random", "k-means++"))
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: Toy: init='randon' is unknown (did you mean 'random'? known: k-means++, random)
    """
    if value not in allowed:
        names = [str(a) for a in allowed]
        raise OptionError(f"{type(component).__name__}: {option}={value!r} is unknown{nearest(str(value), names)}")


def is_count(value: object, least: int = 1) -> bool:
    """Whether the value of an option is an integer ≥ ``least``; a bool is not.

    Args:
        value: the value.
        least: smallest valid integer.

    Example:
        >>> is_count(3), is_count(0), is_count(True), is_count(2.0)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class Component:
    """Base class of extractors, labelers, measures, aggregators and tasks.

    ``__init__`` only checks its arguments and stores them under their own names, as in scikit-learn, so that a
    component can be shown, compared and copied by its options alone.

    Example:
        >>> class Scale(Component):
        ...     name = "scale"
        ...
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         require(factor > 0, self, f"factor must be > 0, got {factor!r}")
        ...         self.factor = factor
        >>> Scale(factor=2.0)
        Scale(factor=2.0)
        >>> Scale(2.0).options()
        {'factor': 2.0}
    """

    name: ClassVar[str]
    """Name of the component in the registry, on the command line and in results."""
    _option_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the options, which are the arguments of ``__init__``."""
        return list(cls._option_names)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls).parameters.values()
        cls._option_names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))

    def options(self) -> dict[str, Any]:
        """The options of this component, by name.

        Raises:
            ComponentError: ``__init__`` does not store one of its arguments.
        """
        for name in self.option_names():
            if not hasattr(self, name):
                raise ComponentError(
                    f"{type(self).__name__}: __init__ takes {name!r} but does not store it: write self.{name} = {name}"
                )
        return {name: getattr(self, name) for name in self.option_names()}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        return f"{type(self).__name__}({options})"

    def clone(self) -> Self:
        """A new component with the same options and no state."""
        return type(self)(
            **{k: v.clone() if isinstance(v, Component) else copy.copy(v) for k, v in self.options().items()}
        )


_ATTRIBUTES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: isinstance(value, str) and bool(value), 'name = "my_component" in the class'),
    "variables": (lambda value: True, 'variables = (Variable("name", "what it is"),) in the class'),
    "components": (
        lambda value: value is None or is_count(value),
        "self.components = 10 in __init__, the number of PCA components, or None for no PCA",
    ),
    "fit_cap": (
        lambda value: is_count(value),
        "self.fit_cap = 80_000 in __init__, the number of vectors that fits see at most",
    ),
    "tap": (lambda value: value in TAPS, 'self.tap = "activation" (or "linear", "block") in __init__'),
}


def check_attributes(component: Component) -> None:
    """Check that a component has the attributes that its kind needs.

    Raises:
        ComponentError: an attribute is missing or invalid, or this is not a component.

    Example:
        >>> class Nameless(ModelMeasure):
        ...     variables = (Variable("mean", "mean of the weights"),)
        ...
        ...     def measure(self, model, layers, data):
        ...         return {"mean": [float(data.weight(layer).mean()) for layer in layers]}
        >>> check_attributes(Nameless())
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: Nameless has no name: write name = "my_component" in the class
    """
    value: object = component  # authors pass names and classes too
    if not isinstance(value, Component):
        hint = f": {value.__name__}(…)" if isinstance(value, type) else ""
        raise ComponentError(f"expected an object of a component, got {value!r}{hint}")
    cls = type(component).__name__
    if isinstance(component, Labeler) and not isinstance(component, TargetLabeler | FeatureLabeler):
        raise ComponentError(f"{cls} is neither a TargetLabeler nor a FeatureLabeler: subclass one of them")
    needed = {Measure: ("name", "variables"), Extractor: ("name", "components", "tap", "fit_cap")}
    for attribute in next((names for base, names in needed.items() if isinstance(component, base)), ("name",)):
        fits, written = _ATTRIBUTES[attribute]
        if not hasattr(component, attribute):
            raise ComponentError(f"{cls} has no {attribute}: write {written}")
        if not fits(getattr(component, attribute)):
            raise ComponentError(f"{cls}: {attribute} is {getattr(component, attribute)!r}: write {written}")


class PatchSet(abc.ABC):
    """The patches of n vectors, each of length D: they can be summed by cluster and compared with centroids.

    Nothing unfolds them where that is not needed: convolutions are cheaper, for example.
    """

    center: slice | None = None
    """Where, in a patch, the pixel at its center is; None if it has no center."""

    @abc.abstractmethod
    def unfold(self) -> Tensor:
        """float32 (n, D): all patches, each in the order (*kernel, channels)."""

    @abc.abstractmethod
    def select(self, rows: Tensor) -> PatchSet:
        """The patches at the indices ``rows``, int64 (m,), ascending."""

    @abc.abstractmethod
    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        """float64 (k, D): the sum of the patches of each label, for labels int64 (n,) in 0 … k − 1."""

    @abc.abstractmethod
    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        """float64 (n,): the squared distance of each patch to the centroid of its label, centroids float64 (k, D)."""

    def project(self, mean: Tensor, components: Tensor) -> Tensor:
        """float64 (n, d): the patches minus their mean, float64 (D,), projected onto components float64 (d, D)."""
        return (self.unfold().double() - mean) @ components.T

    def distances_and_projections(
        self, centroids: Tensor, labels: Tensor, mean: Tensor, components: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`square_distances` and :meth:`project` return, at little more than the cost of one of them."""
        return self.square_distances(centroids, labels), self.project(mean, components)


@dataclass(frozen=True)
class Layer:
    """One measured layer of a model, as it is known before any feature is computed.

    Example:
        >>> Layer(0, "conv", "Conv2d", 8, (4, 4), 27, 108, 1.0, "Conv2d > relu").positions
        16
    """

    index: int
    """Index among the measured layers, in the order of the forward pass."""
    name: str
    """Dotted name of the module, with ``#2`` for the second call of a shared module, and so on."""
    kind: str
    """Class name of the module, such as ``Conv2d``."""
    channels: int
    """k: number of channels of the output where it is read: of the whole concatenation after one."""
    spatial: tuple[int, ...]
    """Spatial size of the output, ``()`` for a linear layer on flat inputs."""
    patch_size: int
    """D: length of the flattened receptive field of one output pixel."""
    input_size: int
    """Elements of what the layer reads for one input."""
    weight_norm: float
    """Frobenius norm of the layer's weight."""
    tap: str
    """Where the output is read: after the layer, or after what follows it (``Conv2d > batch_norm > relu``)."""
    joins: str = ""
    """"sum" or "concatenation" where the output, after the normalization and activation that directly follow the layer,
    first goes into one: what the next layer receives is then the output of a block. "" elsewhere."""

    @property
    def positions(self) -> int:
        """P: number of pixels of the output for one input."""
        return int(np.prod(self.spatial, dtype=np.int64))


class FeatureBatch:
    """Some vectors of a layer's sample, with their fields.

    A field is computed when it is first read, once for all measures. Tensors are on the device of the run and belong to
    the engine: do not write to them, and copy what you keep, since the model may overwrite them later.

    Example:
        >>> layer = Layer(0, "conv", "Conv2d", 2, (1, 1), 9, 9, 1.0, "Conv2d")
        >>> fields = {"vectors": lambda batch: torch.ones(3, 2)}
        >>> inputs = torch.tensor([0, 3, 3])
        >>> batch = FeatureBatch(layer, "test", torch.arange(3), inputs, fields, lambda labeler, batch: torch.zeros(3))
        >>> len(batch), batch.vectors.shape, batch.held_back.tolist()
        (3, torch.Size([3, 2]), [False, True, True])
    """

    def __init__(
        self,
        layer: Layer,
        split: Split,
        rank: Tensor,
        inputs: Tensor,
        fields: Mapping[Field, Callable[[FeatureBatch], FieldValue]],
        labels: Callable[[Labeler, FeatureBatch], Tensor],
        held_back: Tensor | None = None,
    ) -> None:
        self.layer = layer
        self.split: Split = split
        self.rank = rank
        """int64 (n,): rank of each vector in the sample, which does not depend on the order of the data."""
        self.inputs = inputs
        """int64 (n,): rank of the input of each vector among all inputs of the split, by their contents."""
        self.held_back = is_held_back(inputs) if held_back is None else held_back
        """bool (n,): whether ``projected_apart`` is fitted without the input of each vector and without its copies, a
        quarter of the inputs. It is meant for the training split: what is fitted on the other inputs can be tried on
        these."""
        self._fields = fields
        self._labels = labels
        self._computed: dict[Field, Any] = {}
        self._labeled: dict[str, Tensor] = {}
        self._restricted: dict[str, FeatureBatch | None] = {}
        self._reader: tuple[frozenset[Field], Labeler | None] | None = None

    def __len__(self) -> int:
        return len(self.rank)

    @contextlib.contextmanager
    def read_by(self, measure: FeatureMeasure, current: Pass) -> Iterator[None]:
        """Restrict the batch to what a pass declares, whatever other measures have computed."""
        self._reader = (current.fields, measure.labeler)
        try:
            yield
        finally:
            self._reader = None

    def _get(self, name: Field) -> Any:
        reader = self._reader
        if (reader is not None and name not in reader[0]) or name not in self._fields:
            raise GenmeasuresError(f"the field {name!r} was not declared for this pass: add it to Pass(...)")
        if name not in self._computed:
            self._reader = None  # a field may be computed from others that are not declared
            try:
                self._computed[name] = self._fields[name](
                    self
                )  # not a closure over the batch: a cycle would outlive its use
            finally:
                self._reader = reader
        return self._computed[name]

    @property
    def vectors(self) -> Tensor:
        """float32 (n, k): pixels x_ℓ[:, p] of the output, or whole flattened outputs."""
        values: Tensor = self._get("vectors")
        return values

    @property
    def projected(self) -> Tensor:
        """float64 (n, d): the vectors projected by the PCA of the training sample."""
        values: Tensor = self._get("projected")
        return values

    @property
    def projected_apart(self) -> Tensor:
        """float64 (n, ·): the vectors projected by a PCA of the training sample without the inputs ``held_back``.

        A PCA fits its own vectors closer than new ones. In this one, inputs held back and new inputs are alike.
        """
        values: Tensor = self._get("projected_apart")
        return values

    @property
    def patches(self) -> Tensor:
        """float32 (n, D): what the layer reads for each vector, in the order (*kernel, channels)."""
        values: Tensor = self._get("patches")
        return values

    @property
    def patch_set(self) -> PatchSet:
        """The patches as a set that is summed and compared without being unfolded."""
        patches: PatchSet = self._get("patch_set")
        return patches

    @property
    def projected_patches(self) -> Tensor:
        """float64 (n, ·): the patches projected by their PCA, as many components as any measure reads."""
        values: Tensor = self._get("projected_patches")
        return values

    @property
    def patch_projection(self) -> tuple[Tensor, Tensor]:
        """The projection of ``projected_patches``: the mean, float64 (D,), and the components, float64 (·, D)."""
        values: tuple[Tensor, Tensor] = self._get("patch_projection")
        return values

    def labels(self, labeler: Labeler) -> Tensor:
        """int64 (n,): the label of each vector; a measure passes its own labeler, ``batch.labels(self.labeler)``."""
        key, reader = repr(labeler), self._reader
        if reader is not None:
            if "labels" not in reader[0]:
                raise GenmeasuresError("the field 'labels' was not declared for this pass: add it to Pass(...)")
            if key != repr(reader[1]):
                raise GenmeasuresError(
                    f"batch.labels({key}): a measure can read labels of its own labeler alone, {reader[1]!r}: write "
                    "batch.labels(self.labeler), and set self.labeler in __init__ to choose the labeler"
                )
        if key not in self._labeled:
            self._reader = None
            try:
                self._labeled[key] = self._labels(labeler, self)
            finally:
                self._reader = reader
        return self._labeled[key]

    def labeled(self, labeler: Labeler) -> FeatureBatch:
        """The vectors that have a label; the batch itself if all have.

        This is what a measure gets in a pass that reads labels of targets.
        """
        key = repr(labeler)
        if key not in self._restricted:
            has_label = self.labels(labeler) >= 0
            # None stands for the batch itself: a reference to it would be a cycle and outlive its use.
            self._restricted[key] = None if bool(has_label.all()) else self._part(has_label.nonzero()[:, 0])
        restricted = self._restricted[key]
        return self if restricted is None else restricted

    def _part(self, rows: Tensor) -> FeatureBatch:
        """The batch of the vectors at ``rows``, int64 (m,); it takes its fields from this one."""
        whole = weakref.ref(self)

        def select(name: Field, _: FeatureBatch) -> FieldValue:
            values: FieldValue = _alive(whole)._get(name)
            if isinstance(values, tuple):
                return values
            return values.select(rows) if isinstance(values, PatchSet) else values[rows]

        def labels(labeler: Labeler, _: FeatureBatch) -> Tensor:
            return _alive(whole).labels(labeler)[rows]

        fields = {name: functools.partial(select, name) for name in self._fields}
        of_rows = (index[rows.to(index.device)] for index in (self.rank, self.inputs, self.held_back))
        rank, inputs, held_back = of_rows
        return FeatureBatch(self.layer, self.split, rank, inputs, fields, labels, held_back)


def _alive(batch: weakref.ref[FeatureBatch]) -> FeatureBatch:
    whole = batch()
    if whole is None:
        raise GenmeasuresError("a batch of features is read after update has returned: copy what you keep of it")
    return whole


class Sample(abc.ABC):
    """The vectors of a layer that are sampled from a split, sorted by input; drawn by an extractor."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of vectors."""

    @abc.abstractmethod
    def part(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The vectors of the inputs ``start`` … ``stop − 1``.

        Returns:
            Three arrays int64 (n,): the index of the input, ascending; the flattened position in the output of the
            layer, 0 for whole tensors; the rank, 0 … n − 1, in an order of all vectors that depends on the contents of
            the inputs, not on their order.
        """


class Extractor(Component, abc.ABC):
    """Turns the input and output of a layer into vectors (n, k) and patches (n, D).

    Example:
        One vector per input, the mean over its pixels, and no more than the first 100 inputs by content:

        >>> from genmeasures.plugin import Drawn, Extractor, mix, places
        >>> class MeanPixel(Extractor):
        ...     name = "mean_pixel"
        ...     whole_output = True
        ...
        ...     def __init__(self, components: int = 10) -> None:
        ...         self.components, self.tap, self.fit_cap = components, "activation", 100
        ...
        ...     def sample(self, positions, keys, seed, fit=False):
        ...         inputs = np.sort(np.argsort(mix(keys))[:100])
        ...         return Drawn(inputs, np.zeros(len(inputs), dtype=np.int64), places(keys[inputs]))
        ...
        ...     def vector_size(self, layer):
        ...         return layer.channels
        ...
        ...     def patch_size(self, layer):
        ...         return layer.input_size
        ...
        ...     def vectors(self, output, rows, positions):
        ...         return output.mean(2)[rows].float()
        ...
        ...     def patches(self, read, rows, positions):
        ...         return read.whole(rows)
        >>> MeanPixel().vectors(torch.ones(2, 3, 4), torch.tensor([1]), torch.tensor([0]))
        tensor([[1., 1., 1.]])
    """

    components: int | None
    """d: number of PCA components of ``projected``; None leaves vectors as they are, without centering."""
    tap: str
    """Where the output of a layer is read: "activation", after what directly follows the layer, "linear", before, or
    "block", after the sums and concatenations that it then goes into."""
    fit_cap: int
    """Number of vectors per layer that projections, labelers and mixtures are fitted on, at most."""
    whole_output: ClassVar[bool] = False
    """Whether a vector is made from the whole output of a layer: then an input has one label, and tiles are ruled out.
    """
    projects_patches: ClassVar[bool] = False
    """Whether patches are projected by the PCA of all of them, as few and long ones, or of a random sample."""

    @abc.abstractmethod
    def sample(self, positions: int, keys: NDArray[np.uint64], seed: int, fit: bool = False) -> Sample:
        """Draw the vectors of a layer.

        Args:
            positions: P, the number of positions of the layer.
            keys: uint64 (N,), a hash of the contents of each input. A sample that depends on them alone does not
                depend on the order of the data.
            seed: of this sample.
            fit: whether the sample is for fits, and of ``fit_cap`` vectors at most. If the cap of other samples is no
                larger, both are the same.
        """

    @abc.abstractmethod
    def vector_size(self, layer: Layer) -> int:
        """k: length of a vector of the layer."""

    @abc.abstractmethod
    def patch_size(self, layer: Layer) -> int:
        """D: length of a patch of the layer."""

    @abc.abstractmethod
    def vectors(self, output: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """The vectors of a batch.

        Args:
            output: (B, k, P), the output of the layer.
            rows: int64 (n,), the row in the batch of each vector.
            positions: int64 (n,), the flattened position of each vector.

        Returns:
            float32 (n, ``vector_size``).
        """

    @abc.abstractmethod
    def patches(self, read: PatchReader, rows: Tensor, positions: Tensor) -> PatchSet:
        """What the layer reads for these vectors, n patches of length ``patch_size``; arguments as of ``vectors``."""

    def label_size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The spatial size at which dense targets label the vectors of a layer of spatial size ``spatial``."""
        return () if self.whole_output else spatial


class PatchReader(abc.ABC):
    """Reads patches from the input of a layer."""

    @abc.abstractmethod
    def receptive_fields(self, rows: Tensor, positions: Tensor) -> PatchSet:
        """The receptive fields of output positions.

        Args:
            rows: int64 (n,), rows of the batch, ascending.
            positions: int64 (n,), flattened positions in the output.
        """

    @abc.abstractmethod
    def whole(self, rows: Tensor) -> PatchSet:
        """All that the layer reads for the inputs at ``rows``, int64 (n,), flattened."""


class Labeler(Component, abc.ABC):
    """Assigns an integer label to every vector. Subclass :class:`TargetLabeler` or :class:`FeatureLabeler`."""


class TargetLabeler(Labeler):
    """Labels from the targets alone.

    Targets are (B, C, *S), with S = () for one target per input. Without a label, class numbers are −1 and continuous
    targets NaN, in all channels. A vector without a label gets −1, and measures that read these labels do not see it.

    Example:
        >>> from genmeasures.plugin import TargetLabeler
        >>> class Parity(TargetLabeler):
        ...     name = "parity"
        ...
        ...     def label(self, targets, spatial):
        ...         return torch.where(targets < 0, -1, targets % 2)
        >>> Parity().label(torch.tensor([[4], [7], [-1]]), ()).tolist()
        [[0], [1], [-1]]
    """

    needs_fit: ClassVar[bool] = False
    """Whether the labeler sees the training targets before it labels any: by ``observe``, and ``fit`` at their end."""

    note: str = ""
    """A remark on the fit for the status of values, "" for none."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise ComponentError if ``observe`` or ``fit`` is written, but never called."""
        super().__init_subclass__(**kwargs)
        if not cls.needs_fit and (cls.fit is not TargetLabeler.fit or cls.observe is not TargetLabeler.observe):
            raise ComponentError(f"{cls.__name__} has observe or fit, which nothing calls: write needs_fit = True")

    def observe(self, targets: Tensor) -> None:
        """See a batch (B, C, *S) of the training targets, before any model runs."""

    def fit(self, generator: torch.Generator) -> None:
        """Fit on the training targets that have been observed."""

    @abc.abstractmethod
    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        """The labels of some inputs.

        Args:
            targets: (B, C, *S).
            spatial: spatial size of the layer.

        Returns:
            int64 (B, P) for the P positions of the layer, −1 for a position without a label, or (B, 1) if all
            positions of an input have the same label.
        """


class FeatureLabeler(Labeler):
    """Labels from the features. Every layer has a labeler of its own, fitted on its projected training sample.

    Example:
        >>> from genmeasures.plugin import FeatureLabeler
        >>> class Sign(FeatureLabeler):
        ...     name = "sign"
        ...
        ...     def fit(self, projected, generator):
        ...         self._mean = projected[:, 0].mean()
        ...
        ...     def label(self, projected):
        ...         return (projected[:, 0] > self._mean).long()
        >>> labeler, projected = Sign(), torch.tensor([[0.0], [4.0]])
        >>> labeler.fit(projected, torch.Generator())
        >>> labeler.label(projected)
        tensor([0, 1])
    """

    @abc.abstractmethod
    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        """Fit on all projected training vectors, float64 (n, d), in the order of their ranks."""

    @abc.abstractmethod
    def label(self, projected: Tensor) -> Tensor:
        """int64 (n,): the labels of projected vectors float64 (n, d)."""


@dataclass(frozen=True)
class Variable:
    """A variable of the result that a measure writes, with its metadata.

    Example:
        >>> Variable("sharpness", "largest eigenvalue of the Hessian", expected_gap=1, bounds=(0, math.inf)).dims
        ('layer',)

    Raises:
        ComponentError: a field has a value of a wrong type, as if arguments were swapped.
    """

    name: str
    long_name: str
    expected_accuracy: int = 0
    """Expected sign of the correlation with test accuracy (or the task's other test metric) over trained networks:
    +1, −1, or 0 if no source states one."""
    expected_gap: int = 0
    """Expected sign of the correlation with the generalization gap (train − test). It is stated separately: what grows
    during training correlates with both in the same way."""
    expected_accuracy_source: str = ""
    """Reference for ``expected_accuracy``."""
    expected_gap_source: str = ""
    """Reference for ``expected_gap``."""
    units: str = "1"
    references: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest possible value."""
    scale_invariant: bool = False
    """Whether the value stays the same if all features are multiplied by one positive number."""
    dims: tuple[str, ...] = ("layer",)
    """``("layer",)`` for one value per layer, ``()`` for one per model. A model measure may have further dimensions,
    ``("layer", "kernel")``, ``("sample",)`` or ``("row", "column")``; such a variable is stored, and neither aggregated
    nor judged. Where layers, models or variables differ in the size of a dimension, the result is padded with NaN."""
    auxiliary: bool = False
    """Whether it only explains another variable (a standard error, a bound, a count, a target); such a variable is
    stored, and neither judged nor plotted nor scored."""

    def with_error(self) -> tuple[Variable, Variable]:
        """The variable and its standard error over inputs, ``<name>_error``.

        It is written by a measure that is a mean over vectors, whose values :class:`genmeasures.plugin.InputMean`
        computes.

        Example:
            >>> [variable.name for variable in Variable("sparsity", "fraction of zeros").with_error()]
            ['sparsity', 'sparsity_error']
        """
        error = Variable(
            f"{self.name}_error",
            f"standard error of {self.long_name}, over inputs",
            units=self.units,
            references=self.references,
            bounds=(0, math.inf),
            scale_invariant=self.scale_invariant,
            dims=self.dims,
            auxiliary=True,
        )
        return self, error

    def __post_init__(self) -> None:
        """Check the types."""
        written = f"Variable({self.name!r}, …)"
        for what in ("name", "long_name", "expected_accuracy_source", "expected_gap_source", "references"):
            if not isinstance(getattr(self, what), str):
                raise ComponentError(f"{written}: {what} must be a string, got {getattr(self, what)!r}")
        if not self.name:
            raise ComponentError(f"{written}: name must not be empty")
        for what in ("expected_accuracy", "expected_gap"):
            if getattr(self, what) not in (-1, 0, 1):
                raise ComponentError(
                    f"{written}: {what} must be −1, 0 or 1, got {getattr(self, what)!r}: "
                    f"a reference goes into {what}_source="
                )
        numbers = isinstance(self.bounds, tuple) and all(isinstance(bound, int | float) for bound in self.bounds)
        if not numbers or len(self.bounds) != 2:
            raise ComponentError(f"{written}: bounds must be a pair of numbers, bounds=(0, 1), got {self.bounds!r}")
        if not isinstance(self.dims, tuple) or not all(isinstance(dim, str) for dim in self.dims):
            raise ComponentError(f'{written}: dims must be a tuple of names, dims=("layer",), got {self.dims!r}')
        for dim in self.dims:
            if dim != "layer" and difflib.get_close_matches(dim, ["layer"], cutoff=0.8):
                raise ComponentError(f"{written}: dims is {self.dims!r}: did you mean 'layer'?")
        if "layer" in self.dims[1:]:
            raise ComponentError(f"{written}: layer must be the first of the dims, got {self.dims!r}")
        if "model" in self.dims:
            raise ComponentError(
                f"{written}: every variable has the dimension model: leave it out of dims={self.dims!r}"
            )
        if len(set(self.dims)) < len(self.dims):
            raise ComponentError(f"{written}: dims must be distinct names, got {self.dims!r}")


@dataclass(frozen=True)
class Value:
    """A value with a note for the reader of the result, which its status shows.

    Example:
        >>> Value(0.5, "few vectors")
        Value(value=0.5, note='few vectors')
    """

    value: float
    note: str = ""


Values: TypeAlias = float | Value | Mapping[str, float | Value | Undefined]
ModelValue: TypeAlias = float | Value | Undefined | NDArray[np.float64]


@dataclass(frozen=True, init=False)
class Pass:
    """One pass over a sample, with the fields of each batch that are read in it.

    Args:
        sample: "train", "test" or "validation" for the sample of that split, "fit" for the part of the training sample
            (without training data, of the test sample) that fits see.
        fields: names of properties of :class:`FeatureBatch`, and "labels" for its method.

    Raises:
        ComponentError: the sample or a field is unknown.

    Example:
        >>> Pass("test", "vector")
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: Pass('test', 'vector'): there is no field 'vector' (did you mean 'vectors'? \
known: labels, patch_projection, patch_set, patches, projected, projected_apart, projected_patches, vectors)
    """

    sample: SampleName
    fields: frozenset[Field]

    def __init__(self, sample: SampleName, *fields: Field) -> None:
        written = f"Pass({', '.join(map(repr, (sample, *fields)))})"
        for what, names, known in (("sample", [sample], get_args(SampleName)), ("field", fields, get_args(Field))):
            for name in names:
                if not isinstance(name, str):
                    raise ComponentError(
                        f'{written}: {name!r} is not the name of a {what}: list names, as in Pass("test", "vectors")'
                    )
                if name not in known:
                    raise ComponentError(f"{written}: there is no {what} {name!r}{nearest(name, known)}")
        object.__setattr__(self, "sample", sample)
        object.__setattr__(self, "fields", frozenset(fields))


def _check_tuple(cls: type, attribute: str, value: object, kind: type, written: str) -> None:
    """Raise ComponentError unless an attribute of a class is a tuple of objects of one kind."""
    example = f"write {attribute} = ({written},), a tuple even if it is one"
    if isinstance(value, kind):
        raise ComponentError(
            f"{cls.__name__}: {attribute} must be a tuple, got one {kind.__name__}: {example}, with a comma"
        )
    if not isinstance(value, tuple):
        raise ComponentError(f"{cls.__name__}: {attribute} must be a tuple, got a {type(value).__name__}: {example}")
    for index, item in enumerate(value):
        if not isinstance(item, kind):
            raise ComponentError(
                f"{cls.__name__}: {attribute}[{index}] must be a {kind.__name__}, got {item!r}: write {written}"
            )


def check_passes(measure: FeatureMeasure | type[FeatureMeasure], passes: object) -> None:
    """Check the passes of a measure.

    Args:
        measure: the measure or its class.
        passes: its attribute ``passes``.

    Raises:
        ComponentError: they are not a tuple of :class:`Pass`.

    Example:
        >>> check_passes(FeatureMeasure, Pass("test", "vectors"))
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: FeatureMeasure: passes must be a tuple, got one Pass: write passes = \
(Pass("test", "vectors"),), a tuple even if it is one, with a comma
    """
    cls = measure if isinstance(measure, type) else type(measure)
    if inspect.isroutine(passes):
        raise ComponentError(f"{cls.__name__}: passes is a method: write @property above it")
    _check_tuple(cls, "passes", passes, Pass, 'Pass("test", "vectors")')


class Measure(Component):
    """A generalization measure. Subclass :class:`FeatureMeasure`, :class:`OutputMeasure` or :class:`ModelMeasure`."""

    variables: ClassVar[tuple[Variable, ...]]
    """The variables of the result that the measure writes."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise ComponentError for invalid variables: at the class statement, not in the middle of a run."""
        super().__init_subclass__(**kwargs)
        variables = cls.__dict__.get("variables", ())
        if hasattr(variables, "__get__"):  # a property, which is read from an object
            return
        _check_tuple(cls, "variables", variables, Variable, 'Variable("name", "what it is")')
        names = [variable.name for variable in variables]
        if "variables" in cls.__dict__ and not names:
            raise ComponentError(f"{cls.__name__}: variables is empty: a measure writes at least one")
        for name in names:
            if names.count(name) > 1:
                raise ComponentError(
                    f"{cls.__name__}: duplicate variable {name!r}: give each variable a name of its own"
                )

    _alias: str = ""

    def called(self, alias: str) -> Self:
        """A copy under another name, so that a run can have the measure in several settings.

        Args:
            alias: an identifier.

        Raises:
            OptionError: the name is not an identifier.

        Example:
            >>> from genmeasures.measures import Confidence
            >>> [variable.name for variable in Confidence().called("tight").written()]
            ['tight', 'tight_error', 'tight_unweighted', 'tight_unweighted_error', 'tight_published', \
'tight_published_error', 'tight_rank', 'tight_rank_error', 'tight_shift']
        """
        named = isinstance(alias, str) and alias.isidentifier() and not alias.startswith("_")
        require(named, self, f"{alias!r} is not a name: use letters, digits and underscores, a letter first")
        renamed = self.clone()
        renamed._alias = "" if alias == self.name else alias
        return renamed

    def clone(self) -> Self:
        """A new measure with the same options and the same name, and no state."""
        copied = super().clone()
        copied._alias = self._alias
        return copied

    def written(self) -> tuple[Variable, ...]:
        """``variables`` with the names that they have in results.

        If the measure has been renamed, the new name replaces its own name in them, or is prefixed to variables
        without it.
        """
        if not self._alias:
            return self.variables
        renamed = []
        for variable in self.variables:
            own = variable.name == self.name or variable.name.startswith(f"{self.name}_")
            name = f"{self._alias}{variable.name[len(self.name) :]}" if own else f"{self._alias}_{variable.name}"
            renamed.append(replace(variable, name=name, long_name=f"{variable.long_name} ({self._alias})"))
        return tuple(renamed)

    def described(self) -> str:
        """The measure with its options, after its new name if it has been renamed."""
        return f"{self._alias}={self!r}" if self._alias else repr(self)


class FeatureMeasure(Measure, abc.ABC):
    """A measure of features that are streamed: one instance per layer, fed batch by batch.

    The engine calls ``start``; then for each of ``passes`` ``update`` with every batch of the sample and ``end_pass``;
    then ``compute``. The value must depend neither on the division of the sample into batches nor on their order; use
    ``batch.rank`` where the order matters. Raise :class:`~genmeasures.errors.Undefined` if the layer has no value.

    Example:
        >>> from genmeasures.plugin import FeatureMeasure, Pass, Variable
        >>> class Sparsity(FeatureMeasure):
        ...     name = "sparsity"
        ...     variables = (Variable("sparsity", "fraction of zeros in the activations", bounds=(0, 1)),)
        ...     passes = (Pass("test", "vectors"),)
        ...
        ...     def start(self, layer, generator):
        ...         self._zeros = self._count = 0
        ...
        ...     def update(self, batch):
        ...         self._zeros += int((batch.vectors == 0).sum())
        ...         self._count += batch.vectors.numel()
        ...
        ...     def compute(self):
        ...         return self._zeros / self._count
        >>> import genmeasures
        >>> inputs = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        >>> _ = net.load_state_dict({"0.weight": torch.eye(2)})
        >>> genmeasures.measure([net], test=inputs, measures=[Sparsity()]).sparsity.values
        array([[0.25]])
    """

    labeler: Labeler | None = None
    """The labeler of ``batch.labels(self.labeler)``. A measure that reads "labels" and has None gets the one that fits
    the targets."""

    patch_components: int = 0
    """Number of components of ``projected_patches``, or of ``patch_projection``, that the measure reads."""

    extractor: Extractor
    """The extractor of the run, set before ``prepare``: ``self.extractor.vector_size(layer)`` is the length of the
    vectors of a layer, and ``self.extractor.patch_size(layer)`` that of its patches."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise ComponentError for invalid passes, and for variables without one value per layer."""
        super().__init_subclass__(**kwargs)
        if "extractor" in cls._option_names:
            raise ComponentError(
                f"{cls.__name__}: the option 'extractor' is the name of an attribute that the run sets: rename it"
            )
        passes = cls.__dict__.get("passes", ())
        if inspect.isroutine(passes) or not hasattr(passes, "__get__"):
            check_passes(cls, passes)
        variables = cls.__dict__.get("variables", ())
        for variable in variables if isinstance(variables, tuple) else ():
            if variable.dims != ("layer",):
                raise ComponentError(
                    f'{cls.__name__}: the dims of the variable {variable.name!r} must be ("layer",), since a '
                    f"FeatureMeasure has one value per layer, got {variable.dims!r}: leave dims out, or subclass "
                    "OutputMeasure or ModelMeasure"
                )

    def prepare(self, extractor: Extractor) -> None:
        """Adapt to the extractor before ``passes`` is read."""

    @property
    @abc.abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """The passes over the data that the measure needs, in order."""

    @abc.abstractmethod
    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """Begin with a layer.

        Args:
            layer: the layer.
            generator: for all random numbers of the measure; it depends on the seed of the run, the measure with its
                options and the layer.
        """

    @abc.abstractmethod
    def update(self, batch: FeatureBatch) -> None:
        """See a batch of the current pass."""

    def end_pass(self) -> None:
        """End the current pass."""

    @abc.abstractmethod
    def compute(self) -> Values:
        """The value of the layer, or by name a value for each of ``variables``, or :class:`Undefined` for those that
        have none."""


TaskKind: TypeAlias = Literal["classification", "regression", "unknown"]
"""What the targets of a run say of the outputs: "classification" if those of any split are class numbers, one per input
or per pixel, else "regression", and "unknown" without targets."""


class OutputBatch:
    """The outputs of a model for some inputs, with their targets.

    What is derived from them is computed when it is first read, once for all measures. Tensors are on the device of the
    run and belong to the engine: do not write to them, and copy what you keep, since the model may overwrite them
    later.

    Args:
        split: the split.
        inputs: int64 (n,), see :attr:`inputs`.
        outputs: float32 (n, …), see :attr:`outputs`.
        targets: (n, C, *S), see :attr:`targets`.
        kind: kind of the task.
        classes: see :attr:`classes`.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> batch = OutputBatch("test", torch.arange(2), logits, torch.tensor([[0], [-1]]), "classification", 3)
        >>> batch.predictions.tolist(), batch.labels.tolist()
        ([0, 1], [0, -1])
        >>> len(batch), len(batch.labeled)
        (2, 1)
    """

    def __init__(
        self,
        split: Split,
        inputs: Tensor,
        outputs: Tensor,
        targets: Tensor | None = None,
        kind: TaskKind = "unknown",
        classes: int = 0,
    ) -> None:
        self.split: Split = split
        self.inputs = inputs
        """int64 (n,): rank of each input among all inputs of the split by their contents, the same for all models."""
        self.outputs = outputs
        """float32 (n, …): what the model returns, logits (n, K), dense ones (n, K, *S), or other numbers."""
        self.kind: TaskKind = kind
        self.classes = classes
        """The number of classes by the largest label of all splits, 0 if no targets are class numbers. A model may have
        more outputs."""
        self.reads: set[str] = set()
        """Which of "targets" and "logits" have been read, for notes and checks of the engine."""
        self._targets = targets
        self._derived: dict[str, Tensor] = {}
        self._rows: dict[str, OutputBatch | None] = {}

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def targets(self) -> Tensor | None:
        """(n, C, *S), int64 class numbers or float32; None if the data have none.

        Without a label, class numbers are −1 and continuous targets NaN.
        """
        self.reads.add("targets")
        return self._targets

    @property
    def labels(self) -> Tensor:
        """int64 (n, *S): the class number of each input or pixel, −1 without a label.

        Raises:
            Undefined: the data have no targets, or these are not one class number each.
        """
        targets = self._some_targets()
        if targets.is_floating_point() or targets.shape[1] != 1:
            raise Undefined(f"the {self.split} targets are not one class number each")
        return targets[:, 0]

    @property
    def logits(self) -> Tensor:
        """float32 (n, K, *S): the outputs, if they are one per class.

        Raises:
            Undefined: they are not, or do not match the targets.
        """
        self.reads.add("logits")
        return self._by_class()

    def _by_class(self) -> Tensor:
        """The outputs, if they are one per class; Undefined if not."""
        outputs, shape = self.outputs, f"outputs of shape {_each(self.outputs)}"
        if self.kind == "regression":
            raise Undefined("the targets are not class numbers, so that the outputs are no logits")
        if outputs.dim() < 2 or outputs.shape[1] < max(2, self.classes):
            of = f" of {self.classes}" if self.classes else ""
            raise Undefined(f"{shape} are not one per class{of}")
        if self._targets is not None and self._targets.shape[2:] != outputs.shape[2:]:
            raise Undefined(f"{shape} do not match targets of shape {_each(self._targets)}")
        return outputs

    @property
    def log_probabilities(self) -> Tensor:
        """float64 (n, K, *S): the logarithm of the softmax of the logits.

        It keeps its relative precision where the largest probability is 1 in floating-point numbers.

        Raises:
            Undefined: the outputs are not logits.
        """
        logits = self.logits
        return self._once("log_probabilities", lambda: _log_softmax(logits.double()))

    @property
    def predictions(self) -> Tensor:
        """int64 (n, *S): the index of the largest output, which may be a probability as well as a logit.

        Raises:
            Undefined: the outputs are not one per class.
        """
        outputs = self._by_class()
        return self._once("predictions", lambda: outputs.argmax(1))

    @property
    def flat(self) -> OutputBatch:
        """The same with one row per pixel: outputs (m, K), targets (m, C) and inputs (m,), m = n · P.

        So that one definition serves dense outputs and others; the batch itself if outputs are (n, K).

        Raises:
            Undefined: outputs and targets differ in their spatial size.
        """
        if self.outputs.dim() == 2 and (self._targets is None or self._targets.dim() == 2):
            return self
        return self._part("flat", self._flattened)

    @property
    def labeled(self) -> OutputBatch:
        """Those rows of :attr:`flat` that have a label, which may be none.

        Raises:
            Undefined: the data have no targets, or outputs and targets differ in their spatial size.
        """
        self._some_targets()
        return self._part("labeled", self._with_labels)

    def _some_targets(self) -> Tensor:
        targets = self.targets
        if targets is None:
            raise Undefined(f"the {self.split} data have no targets")
        return targets

    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._derived:
            self._derived[name] = compute()
        return self._derived[name]

    def _part(self, name: str, make: Callable[[], OutputBatch]) -> OutputBatch:
        if name not in self._rows:
            made = make()
            self._rows[name] = None if made is self else made  # a reference to itself would be a cycle
        part = self._rows[name]
        if part is None:
            return self
        part.reads = self.reads
        return part

    def _flattened(self) -> OutputBatch:
        outputs = self.outputs[:, None] if self.outputs.dim() == 1 else self.outputs
        targets = self._targets
        if targets is not None and targets.shape[2:] != outputs.shape[2:]:
            raise Undefined(f"outputs of shape {_each(outputs)} do not match targets of shape {_each(targets)}")
        inputs = self.inputs.repeat_interleave(math.prod(outputs.shape[2:]))
        rows = None if targets is None else _by_row(targets)
        return OutputBatch(self.split, inputs, _by_row(outputs), rows, self.kind, self.classes)

    def _with_labels(self) -> OutputBatch:
        flat = self.flat
        targets = flat._some_targets()
        missing = targets.isnan() if targets.is_floating_point() else targets < 0
        rows = (~missing.any(1)).nonzero()[:, 0]
        if len(rows) == len(targets):
            return flat
        return OutputBatch(self.split, flat.inputs[rows], flat.outputs[rows], targets[rows], self.kind, self.classes)


def _log_softmax(logits: Tensor) -> Tensor:
    """The logarithm of the softmax over axis 1, with that of the largest probability from the sum of the others."""
    largest, index = logits.max(1, keepdim=True)
    shifted = logits - largest
    return shifted - shifted.exp().scatter(1, index, 0.0).sum(1, keepdim=True).log1p()


def _each(tensor: Tensor) -> str:
    """The shape of a tensor, whatever the number of inputs."""
    return f"({', '.join(['n', *map(str, tensor.shape[1:])])})"


def _by_row(tensor: Tensor) -> Tensor:
    """(n, C, *S) as (n · P, C)."""
    return tensor.flatten(2).movedim(1, -1).flatten(0, 1) if tensor.dim() > 2 else tensor


def check_splits(measure: OutputMeasure | type[OutputMeasure], splits: object) -> None:
    """Check the splits that a measure of outputs reads.

    Args:
        measure: the measure or its class.
        splits: its attribute ``splits``.

    Raises:
        ComponentError: they are not a tuple of names of splits.

    Example:
        >>> check_splits(OutputMeasure, "test")
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: OutputMeasure: splits must be a tuple of names, got 'test': write splits = \
("test",), a tuple even if it is one
    """
    cls = measure if isinstance(measure, type) else type(measure)
    if inspect.isroutine(splits):
        raise ComponentError(f"{cls.__name__}: splits is a method: write @property above it")
    if not isinstance(splits, tuple) or not splits:
        raise ComponentError(
            f'{cls.__name__}: splits must be a tuple of names, got {splits!r}: write splits = ("test",), a tuple even '
            "if it is one"
        )
    for split in splits:
        if split not in SPLITS:
            raise ComponentError(f"{cls.__name__}: there is no split {split!r}{nearest(str(split), SPLITS)}")


class OutputMeasure(Measure, abc.ABC):
    """A measure of the outputs of a model, which are streamed in the forward passes that other measures make.

    The engine calls ``start``; then ``update`` with every batch of each of ``splits``, one split after another, in any
    order; then ``compute``. The value must depend neither on the division of the data into batches nor on their order:
    add up in float64, and use ``batch.inputs`` where the order matters. Raise
    :class:`~genmeasures.errors.Undefined` if there is no value. Outputs that are NaN or infinite, and those of models
    that return no tensor, have no value.

    :func:`genmeasures.plugin.evaluate` is the measure as a function of arrays, for stored outputs.

    Example:
        >>> from genmeasures.plugin import InputMean, OutputMeasure, Variable
        >>> class AverageConfidence(OutputMeasure):
        ...     name = "average_confidence"
        ...     variables = Variable("average_confidence", "mean largest probability", dims=()).with_error()
        ...     splits = ("test",)
        ...
        ...     def start(self, generator):
        ...         self._mean = InputMean()
        ...
        ...     def update(self, batch):
        ...         flat = batch.flat
        ...         self._mean.add(flat.inputs, flat.log_probabilities.amax(1).exp())
        ...
        ...     def compute(self):
        ...         return self._mean.values("average_confidence")
        >>> import genmeasures
        >>> inputs = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> net = nn.Sequential(nn.Linear(2, 4))
        >>> _ = net.load_state_dict({"0.weight": torch.eye(4, 2), "0.bias": torch.zeros(4)})
        >>> genmeasures.measure([net], test=inputs, measures=[AverageConfidence()]).average_confidence.values
        array([0.25])
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise ComponentError for invalid splits, and for variables with one value per layer."""
        super().__init_subclass__(**kwargs)
        if "splits" in cls.__dict__:
            splits = cls.__dict__["splits"]
            if inspect.isroutine(splits) or not hasattr(splits, "__get__"):
                check_splits(cls, splits)
        variables = cls.__dict__.get("variables", ())
        for variable in variables if isinstance(variables, tuple) else ():
            if "layer" in variable.dims:
                raise ComponentError(
                    f"{cls.__name__}: the variable {variable.name!r} has the dimension layer, and outputs are those of "
                    "the model: write dims=()"
                )

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[Split, ...]:
        """The splits whose outputs the measure reads."""

    @abc.abstractmethod
    def start(self, generator: torch.Generator) -> None:
        """Begin with a model.

        Args:
            generator: for all random numbers of the measure; it depends on the seed of the run and the measure with its
                options.
        """

    @abc.abstractmethod
    def update(self, batch: OutputBatch) -> None:
        """See a batch of one of the splits, ``batch.split``."""

    @abc.abstractmethod
    def compute(self) -> ModelValue | Mapping[str, ModelValue]:
        """The value of the model, or by name one for each of ``variables``, as a :class:`ModelMeasure` returns them."""


class ModelMeasure(Measure, abc.ABC):
    """A measure of the model itself: of its weights, gradients, trajectories or maximized activations.

    :class:`ModelData` has an example.
    """

    reads_facts: ClassVar[bool] = False
    """Whether the measure reads ``data.facts``: values of an earlier run are then reused only for the same name,
    hyperparameters and metrics."""

    def from_targets(self) -> Collection[str]:
        """Names of the variables that depend on targets, whose status notes how targets were read."""
        return ()

    @abc.abstractmethod
    def measure(
        self, model: nn.Module, layers: Sequence[Layer], data: ModelData
    ) -> Mapping[str, ModelValue | Sequence[ModelValue]]:
        """Measure a model.

        Args:
            model: in evaluation mode, on ``data.device``. It must be left unchanged: a measure that changes weights,
                buffers, modes, hooks or ``requires_grad`` has no value, its status names the change, and the model is
                restored for the next measure. Gradients in ``parameter.grad`` are cleared for the measure.
            layers: the measured layers, in the order of the forward pass.
            data: the data, a generator, and what is known of the model.

        Returns:
            By variable name: one value for the model, or a sequence with one for each of ``layers``. A value is a
            number, a :class:`Value`, a float64 array for a variable with further dimensions, with one axis for each of
            them, or an exception :class:`Undefined` with the reason for a missing value.
        """


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model: its name, hyperparameters and metrics. Read-only.

    Example:
        >>> facts = ModelFacts("net_0", {"width": 64}, {"train_accuracy": 0.9})
        >>> facts.hparams["width"]
        64
        >>> facts.hparams["width"] = 32
        Traceback (most recent call last):
            ...
        TypeError: 'mappingproxy' object does not support item assignment
    """

    name: str
    hparams: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    """Hyperparameters; empty for plain modules."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """``train_accuracy``, ``test_accuracy``, ``validation_accuracy`` or others; empty if unknown."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hparams", MappingProxyType(dict(self.hparams)))
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))


@dataclass(frozen=True)
class ModelData:
    """What a model measure can read besides the model.

    Example:
        >>> from genmeasures.plugin import ModelMeasure, Variable
        >>> class SpectralNorm(ModelMeasure):
        ...     name = "spectral_norm"
        ...     variables = (Variable("spectral_norm", "largest singular value of the weight"),)
        ...
        ...     def measure(self, model, layers, data):
        ...         weights = [data.weight(layer).flatten(1).double() for layer in layers]
        ...         return {"spectral_norm": [float(torch.linalg.matrix_norm(w, 2)) for w in weights]}
        >>> import genmeasures
        >>> net = nn.Linear(2, 2)
        >>> net.load_state_dict({"weight": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> ds = genmeasures.measure([net], test=torch.zeros(4, 2), measures=[SpectralNorm()])
        >>> ds.spectral_norm.values
        array([[4.]])
    """

    batches: Callable[[Split], Iterator[tuple[Tensor, Tensor | None]]]
    """``batches("train")`` iterates over (inputs (B, …), targets (B, C, *S) or None) in a fixed order. Without a
    label, class numbers are −1 and continuous targets NaN."""
    sample: Callable[[Split, int | None], tuple[Tensor, Tensor | None]]
    """``sample("train", n)``: at most n inputs with their targets, all for None; the same ones in the same order,
    whatever the order of the data and the batch size."""
    order: Callable[[Split], NDArray[np.int64]]
    """``order("train")``: int64 (N,), the indices of all inputs, in an order that depends on their contents alone."""
    device: torch.device
    """Where the model is, and inputs and targets are."""
    generator: torch.Generator
    """For all random numbers of the measure; it depends on the seed of the run and the measure with its options."""
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules by the name of a layer; use :meth:`module`."""
    known: ModelFacts | None = None
    """None unless the measure declares ``reads_facts``; use :attr:`facts`."""

    def module(self, layer: Layer) -> nn.Module:
        """The module of a layer; it is part of the model, and not a copy."""
        if not isinstance(layer, Layer):
            raise GenmeasuresError(f"expected one of the layers that measure is called with, got {layer!r}")
        if layer.name not in self.modules:
            raise GenmeasuresError(
                f"the layer {layer.name!r} is not measured in this run{nearest(layer.name, self.modules)}"
            )
        return self.modules[layer.name]

    def weight(self, layer: Layer) -> Tensor:
        """A copy of the weight of a layer, as the layer uses it.

        Returns:
            (k, …), or (input channels, k, …) for a transposed convolution, in the type of the model. For gradients with
            respect to the weight, use ``module(layer).weight``.
        """
        weight = self.module(layer).weight
        assert isinstance(weight, Tensor)  # a layer without one is not measured
        return weight.detach().clone()

    @property
    def facts(self) -> ModelFacts:
        """Name, hyperparameters and metrics of the model, for a measure that declares ``reads_facts = True``."""
        if self.known is None:
            raise GenmeasuresError("data.facts was not declared: write reads_facts = True in the class of the measure")
        return self.known


class Aggregator(Component, abc.ABC):
    """Reduces the values of the layers of each model to one number.

    Example:
        >>> from genmeasures.plugin import Aggregator
        >>> class Median(Aggregator):
        ...     name = "median"
        ...
        ...     def reduce(self, values, weight_norms, layer_names):
        ...         return np.nanmedian(values, 1), np.isfinite(values).sum(1)
        >>> reduced, layers = Median().reduce(np.array([[1.0, 2.0, 9.0]]), np.ones((1, 3)), np.array([["a", "b", "c"]]))
        >>> reduced.tolist(), layers.tolist()
        ([2.0], [3])
    """

    reads_values: ClassVar[bool] = True
    """Whether the reduced values are those of the measures: else they have no expected sign and no bounds."""

    @abc.abstractmethod
    def reduce(
        self,
        values: NDArray[np.float64],
        weight_norms: NDArray[np.float64],
        layer_names: NDArray[np.object_],
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Reduce the layers.

        Args:
            values: float64 (models, layers), NaN for a missing value.
            weight_norms: float64 (models, layers), Frobenius norms of the weights.
            layer_names: (models, layers), ``""`` for a layer that a model does not have.

        Returns:
            float64 (models,), the reduced values, and int64 (models,), the numbers of layers that they are computed
            from.
        """


@dataclass(frozen=True)
class TaskModel:
    """A model of a task: how to build it, and what is known of it.

    Example:
        >>> model = TaskModel("net_0", lambda: nn.Linear(2, 2), {"width": 2}, {"test_accuracy": 0.9})
        >>> model.build()
        Linear(in_features=2, out_features=2, bias=True)
    """

    name: str
    build: Callable[[], nn.Module]
    """Builds the trained model on the CPU; raises :class:`~genmeasures.errors.ModelError` that names the file."""
    hparams: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    """Hyperparameters by name."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """``train_accuracy``, ``test_accuracy`` (or ``train_iou``, …): what measures are judged against."""
    train: Any = None
    """The data that this model was trained on, if the models of a task differ in them; else None."""


class Task(Component, abc.ABC):
    """A set of trained models, with the data that they were trained and tested on.

    Example:
        >>> from genmeasures.plugin import Task, TaskModel
        >>> class Toy(Task):
        ...     name = "toy"
        ...
        ...     def __init__(self, width: int = 2) -> None:
        ...         self.width = width
        ...
        ...     def models(self):
        ...         return [TaskModel("net_0", lambda: nn.Linear(2, self.width), {"width": self.width})]
        ...
        ...     def data(self, split):
        ...         return torch.zeros(4, 2) if split == "test" else None
        >>> Toy(3).identity
        'toy(width=3)'
    """

    metric: ClassVar[str] = "accuracy"
    """Name of the metric in ``test_accuracy`` (``iou`` in ``test_iou``, …)."""
    ignore_index: float | None = None
    """The target that means "no label"; None if all targets are labels."""
    splits: tuple[Split, ...] = ("train", "test")
    """The splits that :meth:`data` is asked for. A task with labeled data like the training data, that none of its
    models was trained on, adds "validation"."""

    incidental: ClassVar[tuple[str, ...]] = ()
    """Options that change neither models nor data, such as the number of workers or a cache folder."""

    @property
    def label(self) -> str:
        """Name of the task in results; it differs from ``name`` if the options select one of several tasks."""
        return self.name

    @property
    def identity(self) -> str | None:
        """Identity of the task in results: its name, and the options that are not incidental.

        Runs of one task have the same identity, whichever of its models they measure. None identifies the task by a
        hash of its data, as for a folder of files that can move and change.
        """
        options = ", ".join(f"{k}={v!r}" for k, v in self.options().items() if k not in self.incidental)
        return f"{self.name}({options})"

    @abc.abstractmethod
    def models(self) -> Sequence[TaskModel]:
        """The models; they are cheap to list, and each is built only when it is measured."""

    @abc.abstractmethod
    def data(self, split: Split) -> Any:
        """The data of a split: a torch Dataset, a DataLoader or a tuple of arrays; None if the task has none."""


__all__ = [
    "Aggregator",
    "Component",
    "Extractor",
    "FeatureBatch",
    "FeatureLabeler",
    "FeatureMeasure",
    "Field",
    "Labeler",
    "Layer",
    "Measure",
    "ModelData",
    "ModelFacts",
    "ModelMeasure",
    "ModelValue",
    "OutputBatch",
    "OutputMeasure",
    "Pass",
    "PatchReader",
    "PatchSet",
    "Sample",
    "Split",
    "TargetLabeler",
    "Task",
    "TaskKind",
    "TaskModel",
    "Undefined",
    "Value",
    "Values",
    "Variable",
    "check_attributes",
    "check_passes",
    "check_splits",
    "is_count",
    "one_of",
    "require",
    "split_of",
]
