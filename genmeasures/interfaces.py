"""The interfaces that plugins implement, and the few types that pass between them.

``Task ─► models + data ─► Extractor ─► Labeler ─► Measure ─► Dataset(model, layer) ─► Aggregator``

Shapes: B inputs in a batch, n vectors (sampled pixels, or whole inputs), k channels, d PCA
components, D the length of a flattened patch, P positions of a layer (product of its spatial size).
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

Split: TypeAlias = Literal["train", "test"]
Field: TypeAlias = Literal["vectors", "projected", "patches", "patch_set", "projected_patches", "labels"]
SPLITS: tuple[Split, ...] = ("train", "test")
SampleName: TypeAlias = Literal["fit", "train", "test"]
"""What a pass goes over: a split's sample, or the part of the training sample that things are fitted on."""


def split_of(sample: SampleName, given: Collection[Split] = SPLITS) -> Split:
    """The split that a pass reads: things are fitted on the test sample where test data alone are given."""
    if sample == "fit":
        return "test" if "test" in given and "train" not in given else "train"
    return sample


def require(condition: bool, component: object, message: str) -> None:
    """Raise :class:`OptionError` naming the component unless the condition holds."""
    if not condition:
        raise OptionError(f"{type(component).__name__}: {message}")


def one_of(component: object, option: str, value: object, allowed: Sequence[object]) -> None:
    """Raise :class:`OptionError` unless the option's value is one of the allowed ones."""
    if value not in allowed:
        names = [str(a) for a in allowed]
        raise OptionError(f"{type(component).__name__}: {option}={value!r} is unknown{nearest(str(value), names)}")


def is_count(value: object, least: int = 1) -> bool:
    """Whether an option's value is an integer of at least ``least`` (a bool is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class Component:
    """What extractors, labelers, measures, aggregators and tasks have in common.

    ``__init__`` only stores its arguments, under their own names, and checks them; so a component
    can be shown, compared and copied from its options alone.
    """

    name: ClassVar[str]
    _option_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the arguments of ``__init__``."""
        return list(cls._option_names)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls).parameters.values()
        cls._option_names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))

    def options(self) -> dict[str, Any]:
        """The arguments this component was made with, by name.

        Raises ComponentError for one that ``__init__`` did not keep.
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
        """A component with the same options and no state."""
        return type(self)(
            **{k: v.clone() if isinstance(v, Component) else copy.copy(v) for k, v in self.options().items()}
        )


_ATTRIBUTES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: isinstance(value, str) and bool(value), 'name = "my_component" in the class'),
    "variables": (lambda value: True, 'variables = (Variable("name", "what it is"),) in the class'),
    "components": (lambda value: is_count(value), "self.components = 10 in __init__, the number of PCA components"),
    "fit_cap": (lambda value: is_count(value), "self.fit_cap = 80_000 in __init__, how many vectors fits see at most"),
    "tap": (lambda value: value in ("activation", "linear"), 'self.tap = "activation" (or "linear") in __init__'),
}


def check_attributes(component: Component) -> None:
    """Raise ComponentError for an attribute that a component of its kind must have and has not, or not of use.

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
    given: object = component  # authors pass names and classes too
    if not isinstance(given, Component):
        hint = f": {given.__name__}(…)" if isinstance(given, type) else ""
        raise ComponentError(f"an object of a component is expected, not {given!r}{hint}")
    cls = type(component).__name__
    if isinstance(component, Labeler) and not isinstance(component, TargetLabeler | FeatureLabeler):
        raise ComponentError(f"{cls} is a Labeler of no kind: subclass TargetLabeler or FeatureLabeler")
    needed = {Measure: ("name", "variables"), Extractor: ("name", "components", "tap", "fit_cap")}
    for attribute in next((names for base, names in needed.items() if isinstance(component, base)), ("name",)):
        fits, written = _ATTRIBUTES[attribute]
        if not hasattr(component, attribute):
            raise ComponentError(f"{cls} has no {attribute}: write {written}")
        if not fits(getattr(component, attribute)):
            raise ComponentError(f"{cls}: {attribute} is {getattr(component, attribute)!r}: write {written}")


class PatchSet(abc.ABC):
    """The patches of n vectors, each of length D: summed by cluster and compared with centroids.

    None of this needs them unfolded where it is cheaper to do without.
    """

    @abc.abstractmethod
    def unfold(self) -> Tensor:
        """float32 (n, D): all patches, in the order (*kernel, channels)."""

    @abc.abstractmethod
    def select(self, rows: Tensor) -> PatchSet:
        """The patches at these places, int64 (m,), ascending."""

    @abc.abstractmethod
    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        """float64 (k, D): sums of the patches by label int64 (n,) in 0 … k − 1."""

    @abc.abstractmethod
    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        """float64 (n,): squared distance of each patch to the centroid of its label, of float64 (k, D)."""


@dataclass(frozen=True)
class Layer:
    """What is known of one measured layer of one model before any feature is computed."""

    index: int
    """Place among the measured layers, in the order of the forward pass."""
    name: str
    """Dotted module name; ``#2`` is appended for the second call of a shared module, and so on."""
    kind: str
    """Class name of the module, ``Conv2d`` for one."""
    channels: int
    """k: length of one pixel of the layer's output."""
    spatial: tuple[int, ...]
    """Spatial size of the output; ``()`` for a linear layer on flat input."""
    patch_size: int
    """D: length of the flattened receptive field of one output pixel."""
    input_size: int
    """Length of the flattened input of the layer, of one input."""
    weight_norm: float
    """Frobenius norm of the layer's weight."""
    tap: str
    """Where the output is read: the layer itself, or what follows it (``Conv2d > batch_norm > relu``)."""

    @property
    def positions(self) -> int:
        """P: number of output pixels for one input."""
        return int(np.prod(self.spatial, dtype=np.int64))


class FeatureBatch:
    """Some vectors of one layer's sample, with everything that can be asked of them.

    Fields are computed when first asked for, and only once for all consumers. Tensors lie on the
    run's device and belong to the engine: read them, never write, and copy what you keep: the model
    may write over them later.
    """

    def __init__(
        self,
        layer: Layer,
        split: Split,
        rank: Tensor,
        fields: Mapping[Field, Callable[[FeatureBatch], Tensor | PatchSet]],
        labels: Callable[[Labeler, FeatureBatch], Tensor],
    ) -> None:
        self.layer = layer
        self.split: Split = split
        self.rank = rank
        """int64 (n,): each vector's place in the sample, whatever the order of the data."""
        self._fields = fields
        self._labels = labels
        self._made: dict[Field, Any] = {}
        self._labeled: dict[str, Tensor] = {}
        self._restricted: dict[str, FeatureBatch | None] = {}
        self._reader: tuple[frozenset[Field], Labeler | None] | None = None

    def __len__(self) -> int:
        return len(self.rank)

    @contextlib.contextmanager
    def read_by(self, measure: FeatureMeasure, one: Pass) -> Iterator[None]:
        """While a measure reads the batch: it has what the pass declares, whatever other measures have computed."""
        self._reader = (one.fields, measure.labeler)
        try:
            yield
        finally:
            self._reader = None

    def _get(self, name: Field) -> Any:
        reader = self._reader
        if (reader is not None and name not in reader[0]) or name not in self._fields:
            raise GenmeasuresError(f"the field {name!r} was not declared for this pass: add it to Pass(...)")
        if name not in self._made:
            self._reader = None  # what a field is made of need not be declared
            try:
                self._made[name] = self._fields[name](self)  # not a closure over it: a cycle would outlive its use
            finally:
                self._reader = reader
        return self._made[name]

    @property
    def vectors(self) -> Tensor:
        """float32 (n, k): output pixels x_ℓ[:, p], or whole flattened outputs."""
        made: Tensor = self._get("vectors")
        return made

    @property
    def projected(self) -> Tensor:
        """float64 (n, d): the vectors under the PCA fitted on the training sample."""
        made: Tensor = self._get("projected")
        return made

    @property
    def patches(self) -> Tensor:
        """float32 (n, D): what the layer read to make each vector, in the order (*kernel, channels)."""
        made: Tensor = self._get("patches")
        return made

    @property
    def patch_set(self) -> PatchSet:
        """The same patches, to be summed and compared without being unfolded."""
        made: PatchSet = self._get("patch_set")
        return made

    @property
    def projected_patches(self) -> Tensor:
        """float64 (n, ·): patches under the PCA of the training patches, as many components as any measure reads."""
        made: Tensor = self._get("projected_patches")
        return made

    def labels(self, labeler: Labeler) -> Tensor:
        """int64 (n,): the labeler's label of each vector; a measure gives its own, ``batch.labels(self.labeler)``."""
        key, reader = repr(labeler), self._reader
        if reader is not None:
            if "labels" not in reader[0]:
                raise GenmeasuresError("the field 'labels' was not declared for this pass: add it to Pass(...)")
            if key != repr(reader[1]):
                raise GenmeasuresError(
                    f"batch.labels({key}): there are labels of the measure's own labeler, {reader[1]!r}, and of no "
                    "other: write batch.labels(self.labeler), and set self.labeler in __init__ to choose it"
                )
        if key not in self._labeled:
            self._reader = None
            try:
                self._labeled[key] = self._labels(labeler, self)
            finally:
                self._reader = reader
        return self._labeled[key]

    def labeled(self, labeler: Labeler) -> FeatureBatch:
        """The vectors that have a label: the batch itself where all have.

        The engine gives measures nothing else in a pass that reads labels of targets.
        """
        key = repr(labeler)
        if key not in self._restricted:
            has_label = self.labels(labeler) >= 0
            # None stands for the batch itself, which would be a cycle and outlive its use.
            self._restricted[key] = None if bool(has_label.all()) else self._part(has_label.nonzero()[:, 0])
        made = self._restricted[key]
        return self if made is None else made

    def _part(self, rows: Tensor) -> FeatureBatch:
        """The batch of these of the vectors, int64 (m,), which computes nothing that this one has computed."""
        whole = weakref.ref(self)

        def select(name: Field, _: FeatureBatch) -> Tensor | PatchSet:
            made: Tensor | PatchSet = _alive(whole)._get(name)
            return made.select(rows) if isinstance(made, PatchSet) else made[rows]

        def labels(labeler: Labeler, _: FeatureBatch) -> Tensor:
            return _alive(whole).labels(labeler)[rows]

        fields = {name: functools.partial(select, name) for name in self._fields}
        return FeatureBatch(self.layer, self.split, self.rank[rows.to(self.rank.device)], fields, labels)


def _alive(batch: weakref.ref[FeatureBatch]) -> FeatureBatch:
    made = batch()
    if made is None:
        raise GenmeasuresError("a batch of features is read after its use: copy what you keep of it")
    return made


class Sample(abc.ABC):
    """Which vectors of a split stand for a layer, sorted by input; made by an extractor."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of vectors."""

    @abc.abstractmethod
    def part(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of the inputs start … stop − 1, for each vector: input, ascending; position; rank.

        position: flattened position in the layer's output, 0 for whole tensors. rank: place in an
        order of all vectors that depends on the inputs' contents, not on their order.
        """


class Extractor(Component, abc.ABC):
    """Turns a layer's input and output tensors into vectors (n, k) and patches (n, D)."""

    components: int
    """d: number of PCA components of ``projected``."""
    tap: str
    """Where a layer's output is read: after what directly follows it ("activation"), or bare ("linear")."""
    projects_patches: ClassVar[bool] = False
    """Whether a patch is so long that roughness reduces it by PCA unless told otherwise."""

    fit_cap: int
    """Vectors a layer that projections, labelers and mixtures are fitted on, at most."""

    @abc.abstractmethod
    def sample(self, positions: int, keys: NDArray[np.uint64], seed: int, fit: bool = False) -> Sample:
        """Draw the vectors of a layer with P positions; keys (N,) uint64 stand for the inputs' contents.

        ``fit``: no more than ``fit_cap``. Where the cap is no larger, the sample is the same either way.
        """

    @abc.abstractmethod
    def vector_size(self, layer: Layer) -> int:
        """Length of one vector."""

    @abc.abstractmethod
    def patch_size(self, layer: Layer) -> int:
        """Length of one patch."""

    @abc.abstractmethod
    def vectors(self, output: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """float32 (n, ·) from the output (B, k, P), for vectors ``rows`` (n,) of the batch at ``positions`` (n,)."""

    @abc.abstractmethod
    def patches(self, read: PatchReader, rows: Tensor, positions: Tensor) -> PatchSet:
        """What the layer read to make these vectors."""

    @abc.abstractmethod
    def label_size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The spatial size at which dense targets label this extractor's vectors."""


class PatchReader(abc.ABC):
    """A layer's input tensor, with the geometry by which the layer reads it."""

    @abc.abstractmethod
    def receptive_fields(self, rows: Tensor, positions: Tensor) -> PatchSet:
        """Receptive fields of output positions (n,) of the inputs ``rows`` (n,), ascending, of the batch."""

    @abc.abstractmethod
    def whole(self, rows: Tensor) -> PatchSet:
        """Everything the layer read for the inputs ``rows`` (n,), flattened."""


class Labeler(Component, abc.ABC):
    """Gives every vector an integer. Subclass :class:`TargetLabeler` or :class:`FeatureLabeler`."""


class TargetLabeler(Labeler):
    """Labels from the targets alone. Targets come as (B, C, *S): S = () for one target an input.

    Where the data have no label, class numbers are −1 and continuous targets NaN, in all channels.
    A vector without a label gets −1: measures that read these labels do not see it.
    """

    def observe(self, targets: Tensor) -> None:
        """See a batch of training targets, before any model runs."""

    def fit(self, generator: torch.Generator) -> None:
        """End of the training targets: settle what depends on them."""

    @abc.abstractmethod
    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        """int64 (B, P): labels at every position of a layer of that spatial size ((B, 1) where all are alike).

        −1 stands for a position without any label.
        """


class FeatureLabeler(Labeler):
    """Labels from the features; one instance a layer, fitted on its projected training sample."""

    @abc.abstractmethod
    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        """See all projected training vectors, float64 (n, d), in canonical order."""

    @abc.abstractmethod
    def label(self, projected: Tensor) -> Tensor:
        """int64 (n,) for projected vectors float64 (n, d)."""


@dataclass(frozen=True)
class Variable:
    """A variable that a measure writes: its name and what the result says of it."""

    name: str
    long_name: str
    expected_accuracy: int = 0
    """Expected sign of the correlation with test accuracy (or the task's other test metric) over trained networks:
    +1, −1, or 0 where no source states one."""
    expected_gap: int = 0
    """Expected sign of the correlation with the generalization gap (train − test), stated apart: what grows with
    training correlates with both in the same way."""
    expected_accuracy_source: str = ""
    """Who states ``expected_accuracy``, and where."""
    expected_gap_source: str = ""
    """Who states ``expected_gap``, and where."""
    units: str = "1"
    references: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Between which every value lies, these included."""
    scale_invariant: bool = False
    """Whether features that are all multiplied by one positive number have the same value."""
    dims: tuple[str, ...] = ("layer",)
    """``("layer",)`` for one value per layer, ``()`` for one per model. Of a model measure, one more dimension may
    follow, ``("layer", "kernel")`` or ``("sample",)``: for looking at, not aggregated nor judged."""
    auxiliary: bool = False
    """Whether it only explains another variable (a standard error, a bound, a count, a target): it is stored, and
    neither judged nor plotted nor scored."""

    def __post_init__(self) -> None:
        """Raise ComponentError for what cannot be such a thing, as where an argument stands in the place of another."""
        written = f"Variable({self.name!r}, …)"
        for what in ("name", "long_name", "expected_accuracy_source", "expected_gap_source", "references"):
            if not isinstance(getattr(self, what), str):
                raise ComponentError(f"{written}: {what} is {getattr(self, what)!r}, a text is expected")
        if not self.name:
            raise ComponentError(f"{written}: a name is expected")
        for what in ("expected_accuracy", "expected_gap"):
            if getattr(self, what) not in (-1, 0, 1):
                raise ComponentError(
                    f"{written}: {what} is {getattr(self, what)!r}, not −1, 0 or 1: its source goes into {what}_source="
                )
        numbers = isinstance(self.bounds, tuple) and all(isinstance(bound, int | float) for bound in self.bounds)
        if not numbers or len(self.bounds) != 2:
            raise ComponentError(f"{written}: bounds is {self.bounds!r}, a pair of numbers is expected: bounds=(0, 1)")
        if not isinstance(self.dims, tuple) or not all(isinstance(dim, str) for dim in self.dims):
            raise ComponentError(f'{written}: dims is {self.dims!r}, a tuple of names is expected: dims=("layer",)')
        for dim in self.dims:
            if dim != "layer" and difflib.get_close_matches(dim, ["layer"], cutoff=0.8):
                raise ComponentError(f"{written}: dims is {self.dims!r}: did you mean 'layer'?")


@dataclass(frozen=True)
class Value:
    """A value with a remark that a reader of the result must know."""

    value: float
    note: str = ""


Values: TypeAlias = float | Value | Mapping[str, float | Value]
ModelValue: TypeAlias = float | Value | Undefined | NDArray[np.float64]


@dataclass(frozen=True, init=False)
class Pass:
    """One pass over a sample, and which fields of each batch are read in it ("labels" for ``batch.labels``).

    sample: "train" or "test" for the sample of that split, "fit" for the part of the training
    sample to fit on, or of the test sample where no training data are given.

    Raises ComponentError for an unknown sample or field.

    Example:
        >>> Pass("test", "vector")
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: Pass('test', 'vector'): there is no field 'vector' (did you mean 'vectors'? \
known: labels, patch_set, patches, projected, projected_patches, vectors)
    """

    sample: SampleName
    fields: frozenset[Field]

    def __init__(self, sample: SampleName, *fields: Field) -> None:
        written = f"Pass({', '.join(map(repr, (sample, *fields)))})"
        for what, given, known in (("sample", [sample], get_args(SampleName)), ("field", fields, get_args(Field))):
            for one in given:
                if not isinstance(one, str):
                    raise ComponentError(
                        f'{written}: {one!r} is no name of a {what}: write them one by one, Pass("test", "vectors")'
                    )
                if one not in known:
                    raise ComponentError(f"{written}: there is no {what} {one!r}{nearest(one, known)}")
        object.__setattr__(self, "sample", sample)
        object.__setattr__(self, "fields", frozenset(fields))


def _check_tuple(cls: type, attribute: str, given: object, kind: type, written: str) -> None:
    """Raise ComponentError unless an attribute of a class is a tuple of objects of one kind."""
    example = f"write {attribute} = ({written},), a tuple also where it is one"
    if isinstance(given, kind):
        raise ComponentError(
            f"{cls.__name__}: {attribute} is one {kind.__name__}, not a tuple: {example}, with a comma"
        )
    if not isinstance(given, tuple):
        raise ComponentError(f"{cls.__name__}: {attribute} is a {type(given).__name__}, not a tuple: {example}")
    for place, one in enumerate(given):
        if not isinstance(one, kind):
            raise ComponentError(
                f"{cls.__name__}: {attribute}[{place}] is {one!r}, not a {kind.__name__}: write {written}"
            )


def check_passes(measure: FeatureMeasure | type[FeatureMeasure], passes: object) -> None:
    """Raise ComponentError unless the passes of a measure are a tuple of :class:`Pass`."""
    cls = measure if isinstance(measure, type) else type(measure)
    if inspect.isroutine(passes):
        raise ComponentError(f"{cls.__name__}: passes is a method: write @property above it")
    _check_tuple(cls, "passes", passes, Pass, 'Pass("test", "vectors")')


class Measure(Component):
    """A generalization measure. Subclass :class:`FeatureMeasure` or :class:`ModelMeasure`."""

    variables: ClassVar[tuple[Variable, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise ComponentError for variables that are none: at the class, not in the middle of a run."""
        super().__init_subclass__(**kwargs)
        given = cls.__dict__.get("variables", ())
        if hasattr(given, "__get__"):  # a property, which is read of an object
            return
        _check_tuple(cls, "variables", given, Variable, 'Variable("name", "what it is")')
        names = [variable.name for variable in given]
        if "variables" in cls.__dict__ and not names:
            raise ComponentError(f"{cls.__name__}: variables is empty: a measure writes one at least")
        for name in names:
            if names.count(name) > 1:
                raise ComponentError(
                    f"{cls.__name__}: two of its variables are called {name!r}: give each its own name"
                )

    _alias: str = ""

    def called(self, alias: str) -> Self:
        """The same measure under another name, so that a run can have it in several settings.

        Example:
            >>> from genmeasures.measures import Confidence
            >>> [variable.name for variable in Confidence().called("tight").written()]
            ['tight', 'tight_unweighted']

        Raises:
            OptionError: the name is no identifier.
        """
        named = isinstance(alias, str) and alias.isidentifier() and not alias.startswith("_")
        require(named, self, f"{alias!r} is no name for it: letters, digits and underscores, a letter first")
        made = self.clone()
        made._alias = "" if alias == self.name else alias
        return made

    def clone(self) -> Self:
        made = super().clone()
        made._alias = self._alias
        return made

    def written(self) -> tuple[Variable, ...]:
        """``variables`` with the names that they have in results: where the measure was given a name, that name
        stands in place of its own, or before names that do not begin with it."""
        if not self._alias:
            return self.variables
        made = []
        for variable in self.variables:
            own = variable.name == self.name or variable.name.startswith(f"{self.name}_")
            name = f"{self._alias}{variable.name[len(self.name) :]}" if own else f"{self._alias}_{variable.name}"
            made.append(replace(variable, name=name, long_name=f"{variable.long_name} ({self._alias})"))
        return tuple(made)

    def described(self) -> str:
        """The measure with its options, after the name that it was given, if any."""
        return f"{self._alias}={self!r}" if self._alias else repr(self)


class FeatureMeasure(Measure, abc.ABC):
    """A streaming consumer of features: one instance a layer, fed batch by batch.

    The engine calls ``start``; then for each of ``passes`` ``update`` with every batch of that
    split and ``end_pass``; then ``compute``. Results must not depend on how the sample is split
    into batches, nor on the order of the batches: use ``batch.rank`` where order matters.
    Raise :class:`~genmeasures.errors.Undefined` where the layer has no value.
    """

    labeler: Labeler | None = None
    """What ``batch.labels(self.labeler)`` uses. A measure with "labels" in a pass and no labeler of
    its own gets the one that fits the targets."""

    patch_components: int = 0
    """How many components of ``projected_patches`` the measure reads."""

    extractor: Extractor
    """The run's extractor, which the engine sets before ``prepare``: ``self.extractor.vector_size(layer)`` is the
    length of the layer's vectors, and ``self.extractor.patch_size(layer)`` that of its patches."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise ComponentError for passes that are none, and for variables that are not those of a layer."""
        super().__init_subclass__(**kwargs)
        if "extractor" in cls._option_names:
            raise ComponentError(
                f"{cls.__name__}: __init__ has an option 'extractor', where the run's extractor is put: rename it"
            )
        passes = cls.__dict__.get("passes", ())
        if inspect.isroutine(passes) or not hasattr(passes, "__get__"):
            check_passes(cls, passes)
        variables = cls.__dict__.get("variables", ())
        for variable in variables if isinstance(variables, tuple) else ():
            if variable.dims != ("layer",):
                raise ComponentError(
                    f"{cls.__name__}: the variable {variable.name!r} has the dims {variable.dims!r}, and a "
                    'FeatureMeasure has one value per layer, dims=("layer",): leave dims out, or subclass ModelMeasure'
                )

    def prepare(self, extractor: Extractor) -> None:
        """Learn the extractor before ``passes`` is read."""

    @property
    @abc.abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """The passes over the data that this measure needs, in order."""

    @abc.abstractmethod
    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """Forget everything and begin with one layer."""

    @abc.abstractmethod
    def update(self, batch: FeatureBatch) -> None:
        """See one batch of the current pass."""

    def end_pass(self) -> None:
        """The current pass is over."""

    @abc.abstractmethod
    def compute(self) -> Values:
        """The layer's value, or a value for each of ``variables`` by name."""


class ModelMeasure(Measure, abc.ABC):
    """A measure that needs the model itself: weights, gradients, trajectories, activation maximization."""

    reads_facts: ClassVar[bool] = False
    """Whether ``data.facts`` is read: values that are kept then hold for the same name, hyperparameters and metrics
    alone."""

    def from_targets(self) -> Collection[str]:
        """Names of the variables that depend on targets: their status says how these were read, if not as given."""
        return ()

    @abc.abstractmethod
    def measure(
        self, model: nn.Module, layers: Sequence[Layer], data: ModelData
    ) -> Mapping[str, ModelValue | Sequence[ModelValue]]:
        """Values by variable name: one for the model, or a sequence with one for each of ``layers``.

        One of these is a number, a :class:`Value`, float64 (n,) where the variable has a dimension
        of its own, or the exception :class:`Undefined` with the reason why there is none.

        The model comes in evaluation mode on ``data.device`` and must be left as it was: a measure that leaves other
        weights, buffers, modes, hooks or ``requires_grad`` has no value but a status that says what it changed, and
        the model is put back for the measures after it. Gradients in ``parameter.grad`` are cleared for it.
        """


@dataclass(frozen=True)
class ModelFacts:
    """What a task or a caller says of a model. Read-only.

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
    """Hyperparameters; empty where none are known, as of plain modules."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """``train_accuracy``, ``test_accuracy`` or others, where they are known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hparams", MappingProxyType(dict(self.hparams)))
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))


@dataclass(frozen=True)
class ModelData:
    """What a model measure may read besides the model.

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
    """``batches("train")`` iterates over (inputs (B, …), targets (B, C, *S) or None) in fixed order. Where there
    is no label, class numbers are −1 and continuous targets NaN."""
    sample: Callable[[Split, int | None], tuple[Tensor, Tensor | None]]
    """``sample("train", n)``: at most n inputs with their targets, all for None: the same ones, in the same order,
    whatever the order of the data and the batch size."""
    order: Callable[[Split], NDArray[np.int64]]
    """``order("train")``: the indices of all inputs, in an order that depends on their contents alone."""
    device: torch.device
    generator: torch.Generator
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """By the name of a layer; :meth:`module` reads it."""
    known: ModelFacts | None = None
    """None where the measure does not declare ``reads_facts``; :attr:`facts` reads it."""

    def module(self, layer: Layer) -> nn.Module:
        """The module of a layer, part of the model: what is done to it is done to the model."""
        if not isinstance(layer, Layer):
            raise GenmeasuresError(f"a layer is expected, one of those that measure is given, not {layer!r}")
        if layer.name not in self.modules:
            raise GenmeasuresError(f"the layer {layer.name!r} is none of this run{nearest(layer.name, self.modules)}")
        return self.modules[layer.name]

    def weight(self, layer: Layer) -> Tensor:
        """(k, …): a copy of a layer's weight, in the model's type, as the layer computes with it.

        Of a transposed convolution, (inputs, k, …). For gradients by the weight itself, take ``module(layer).weight``.
        """
        weight = self.module(layer).weight
        assert isinstance(weight, Tensor)  # a layer without one is not measured
        return weight.detach().clone()

    @property
    def facts(self) -> ModelFacts:
        """Name, hyperparameters and metrics of the model, of a measure that declares ``reads_facts = True``."""
        if self.known is None:
            raise GenmeasuresError("data.facts was not declared: write reads_facts = True in the class of the measure")
        return self.known


class Aggregator(Component, abc.ABC):
    """Reduces the layers of each model to one number."""

    @abc.abstractmethod
    def reduce(
        self,
        values: NDArray[np.float64],
        weight_norms: NDArray[np.float64],
        layer_names: NDArray[np.object_],
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(models,) values and numbers of layers used, from (models, layers) arrays.

        A layer that a model does not have carries the name ``""``; one without a value is NaN.
        """


@dataclass(frozen=True)
class TaskModel:
    """A model of a task: how to build it, and what is known of it."""

    name: str
    build: Callable[[], nn.Module]
    """Builds the trained model on the CPU; raises :class:`~genmeasures.errors.ModelError` naming the file."""
    hparams: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """``train_accuracy``, ``test_accuracy`` (or ``train_iou``, …): what measures are judged against."""
    train: Any = None
    """The data that this model was trained on, where the models of a task differ in it."""


class Task(Component, abc.ABC):
    """A set of trained models, the data they were trained and tested on, and what is known of them."""

    metric: ClassVar[str] = "accuracy"
    ignore_index: float | None = None
    """The target that means "no label"; None where all targets are labels."""

    incidental: ClassVar[tuple[str, ...]] = ()
    """Options that change neither models nor data, such as the number of workers or the folder of a cache."""

    @property
    def label(self) -> str:
        """What results call it: its name, or that of the one task that it stands for."""
        return self.name

    @property
    def identity(self) -> str | None:
        """What tells this task from all others in results: its name, and the options that are not incidental.

        None where only the content of its data can tell, as for a folder of files, which can lie anywhere and
        change: results then have a hash of the data as they are read. Runs of one task have the same identity
        whichever of its models they measure.
        """
        options = ", ".join(f"{k}={v!r}" for k, v in self.options().items() if k not in self.incidental)
        return f"{self.name}({options})"

    @abc.abstractmethod
    def models(self) -> Sequence[TaskModel]:
        """The models, cheap to list: each is built when its turn comes."""

    @abc.abstractmethod
    def data(self, split: Split) -> Any:
        """A torch Dataset, a DataLoader or a tuple of arrays; None where the task has no such data."""


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
    "Pass",
    "PatchReader",
    "PatchSet",
    "Sample",
    "Split",
    "TargetLabeler",
    "Task",
    "TaskModel",
    "Undefined",
    "Value",
    "Values",
    "Variable",
    "check_attributes",
    "check_passes",
    "is_count",
    "one_of",
    "require",
    "split_of",
]
