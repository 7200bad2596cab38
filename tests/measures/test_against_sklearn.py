"""Every measure, with every option, against a plain pipeline of forward hooks, unfold, scikit-learn and SciPy.

The pipeline shares with the package the sample alone (which positions of which inputs).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    silhouette_score,
)
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import genmeasures
from genmeasures import labelers
from genmeasures.data import DataSource
from genmeasures.engine import prepare_data
from genmeasures.engine.seeds import generator_for
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import Extractor, FeatureBatch, FeatureMeasure, Layer, Measure, Pass, Variable
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.measures.roughness import _Pushforward
from genmeasures.statistics.mixture import Mixtures, fit_mixtures, fit_mixtures_apart

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10_tutorial_nets"
SPLITS = ("train", "test")
SAMPLES = ("fit", "train", "test")
"""Projections, clusters and mixtures are fitted on the first, a part of the second."""
Floats = NDArray[np.floating]
Labels = NDArray[np.int64]
Data = dict[str, tuple[NDArray[np.float32], Labels]]


class CifarNet(nn.Module):
    """The network of PyTorch's CIFAR-10 tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class Spy(FeatureMeasure):
    """Keeps what measures are given, in the order of the sample."""

    name = "spy"
    variables = (Variable("spy", "number of vectors", 0),)
    seen: ClassVar[dict[tuple[str, str], dict[str, NDArray[Any]]]] = {}

    def __init__(self, k: int) -> None:
        self.k = k
        self.labeler = labelers.KMeans(k)

    @property
    def passes(self) -> tuple[Pass, ...]:
        return tuple(Pass(over, "vectors", "projected", "patches", "labels") for over in SAMPLES)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._layer, self._pass, self._parts = layer.name, 0, {over: [] for over in SAMPLES}

    def update(self, batch: FeatureBatch) -> None:
        fields = (batch.rank, batch.vectors, batch.projected, batch.patches, batch.labels(self.labeler))
        self._parts[SAMPLES[self._pass]].append([field.numpy().copy() for field in fields])

    def end_pass(self) -> None:
        self._pass += 1

    def compute(self) -> float:
        for over, parts in self._parts.items():
            rank, *fields = (np.concatenate(part) for part in zip(*parts, strict=True))
            names = ("vectors", "projected", "patches", "labels")
            self.seen[self._layer, over] = {
                name: field[np.argsort(rank)] for name, field in zip(names, fields, strict=True)
            }
        return float(len(rank))


def oas(covariance: Floats, n: int, pooled: Floats) -> Floats:
    """Oracle approximating shrinkage (Chen et al. 2010, equation 23) in coordinates whitened by ``pooled``."""
    d, root = len(pooled), np.linalg.cholesky(pooled)
    white = np.linalg.solve(root, np.linalg.solve(root, covariance).T)
    trace, square = np.trace(white), (white**2).sum()
    rho = min(1.0, ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d)))
    shrunk: Floats = root @ ((1 - rho) * white + rho * trace / d * np.eye(d)) @ root.T
    return shrunk


@dataclass
class LayerPipeline:
    """What scikit-learn makes of one layer: everything by sample."""

    vectors: dict[str, Floats]
    patches: dict[str, Floats]
    classes: dict[str, Labels]
    seen: dict[str, dict[str, NDArray[Any]]]
    """What the package made of it."""
    components: int
    k: int

    @cached_property
    def projected(self) -> dict[str, Floats]:
        pca = PCA(min(self.components, self.vectors["fit"].shape[1]), svd_solver="full")
        pca.fit(self.vectors["fit"].astype(np.float64))
        return {over: pca.transform(self.vectors[over].astype(np.float64)) for over in SAMPLES}

    @property
    def labels(self) -> dict[str, Labels]:
        """The package's clusters."""
        return {over: self.seen[over]["labels"] for over in SAMPLES}

    @cached_property
    def best(self) -> KMeans:
        """The best of three runs of scikit-learn's k-means, of ten starts each."""
        runs = [KMeans(self.k, n_init=10, tol=0, random_state=seed).fit(self.projected["fit"]) for seed in range(3)]
        return min(runs, key=lambda run: run.inertia_)

    @property
    def best_labels(self) -> dict[str, Labels]:
        return {over: self.best.predict(self.projected[over]) for over in SAMPLES}

    @cached_property
    def unique(self) -> bool:
        """Whether scikit-learn ends with the same clusters from any single start."""
        runs = [KMeans(self.k, n_init=1, tol=0, random_state=seed).fit(self.projected["fit"]) for seed in range(8)]
        return all(adjusted_rand_score(runs[0].labels_, run.labels_) == 1 for run in runs)

    @property
    def alike(self) -> bool:
        """Whether the package and scikit-learn came to all but the same clusters, of the many local optima."""
        return bool(adjusted_rand_score(self.labels["fit"], self.best.labels_) > 0.99)

    def log_density(self, kind: str, labels: dict[str, Labels], starts: Mixtures | int = 1) -> dict[str, Floats]:
        """By sample (n,): the largest log density of any cluster, as mixture or by component.

        starts: how many components each mixture has, or mixtures from which scikit-learn goes on.
        """
        points = self.projected
        ridge = 1e-6 * points["fit"].var(0).mean()
        groups = [points["fit"][labels["fit"] == label] for label in np.unique(labels["fit"])]
        within = sum(len(group) * np.cov(group.T, bias=True) for group in groups)
        pooled = within / (len(labels["fit"]) - len(groups)) + ridge * np.eye(len(within))
        by_cluster: dict[str, list[Floats]] = {over: [] for over in SAMPLES}
        for label in np.unique(labels["fit"]):
            fit = GaussianMixture(starts if isinstance(starts, int) else 1, reg_covar=ridge, random_state=0)
            if isinstance(starts, Mixtures):
                own = (starts.cluster == label).numpy()
                # The signs of the two projections may differ.
                sign = np.sign((self.seen["fit"]["projected"] * points["fit"]).sum(0))
                u = starts.precisions.numpy()[own]
                fit.set_params(
                    n_components=int(own.sum()),
                    weights_init=starts.log_weights.exp().numpy()[own],
                    means_init=starts.means.numpy()[own] * sign,
                    precisions_init=u @ u.swapaxes(1, 2) * np.outer(sign, sign),
                )
            members = points["fit"][labels["fit"] == label]
            fit.fit(members)
            if len(members) < 10 * (1 + members.shape[1]):
                assert len(fit.means_) == 1
                fit.covariances_[0] = oas(np.cov(members.T, bias=True), len(members), pooled) + ridge * np.eye(
                    len(pooled)
                )
            for over in SAMPLES:
                each = zip(fit.means_, fit.covariances_, strict=True)
                densities = np.stack([multivariate_normal(mean, cov).logpdf(points[over]) for mean, cov in each], 1)
                mixed = logsumexp(densities + np.log(fit.weights_), axis=1)
                by_cluster[over].append(densities.max(1) if kind == "component" else mixed)
        return {over: np.max(found, axis=0) for over, found in by_cluster.items()}


def by_hooks(net: nn.Module, x: NDArray[np.float32], activated: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every layer: outputs (N, k, P), after ReLU for those named, and unfolded inputs (N, D, P), channels last."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            given = args[0]
            if isinstance(layer, nn.Conv2d):
                unfolded = nn.functional.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
                by_channel = unfolded.unflatten(1, (layer.in_channels, -1))
                unfolded = by_channel.transpose(1, 2).flatten(1, 2)
            else:
                unfolded = given[:, :, None]
            out = output.flatten(2) if output.dim() > 2 else output[:, :, None]
            found[name] = (out.clamp(min=0) if name in activated else out.clone(), unfolded)

        return hook

    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers]
    with torch.no_grad():
        net(torch.from_numpy(x))
    for handle in handles:
        handle.remove()
    return found


class Case:
    """A network and its data, measured with the package and with the pipeline."""

    def __init__(self, net: nn.Module, data: Data, extractor: Extractor) -> None:
        self.net, self.data, self.extractor = net, data, extractor
        self.names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]

    def measure(self, *measures: Measure) -> dict[str, dict[str, float]]:
        """By variable and layer."""
        ds = genmeasures.measure(
            {"net": self.net}, self.data["train"], self.data["test"], measures=measures, extractor=self.extractor
        )
        named = {str(name): ds[name].values[0] for name in ds.data_vars if not str(name).endswith("_status")}
        for name in named:
            for status in ds[f"{name}_status"].values[0]:
                few = ("note: fewer than", "note: covariance shrunk")
                assert (
                    status == "ok" or status.startswith(few) or status.startswith("undefined: ranks are those of new")
                )
        names = list(ds["layer_name"].values[0])
        return {variable: dict(zip(names, values, strict=True)) for variable, values in named.items()}

    @cached_property
    def _features(self) -> dict[str, dict[str, dict[str, Any]]]:
        sources = {split: DataSource(self.data[split], split, 128) for split in SPLITS}
        prepared = prepare_data(sources, [], self.extractor, seed=0)
        activated = self.names[:-1] if self.extractor.tap == "activation" else []
        hooked = {split: by_hooks(self.net, self.data[split][0], activated) for split in SPLITS}
        made: dict[str, dict[str, dict[str, Any]]] = {}
        for name in self.names:
            made[name] = {"vectors": {}, "patches": {}, "classes": {}}
            for over in SAMPLES:
                split = "test" if over == "test" else "train"
                output, unfolded = hooked[split][name]
                inputs, positions, rank = prepared.sample(over, output.shape[2]).part(0, len(output))
                order = np.argsort(rank)
                inputs, positions = inputs[order], positions[order]
                if isinstance(self.extractor, WholeTensor):
                    made[name]["vectors"][over] = output.transpose(1, 2).flatten(1)[inputs].numpy()
                    made[name]["patches"][over] = self.whole_input(name, self.data[split][0])[inputs]
                else:
                    made[name]["vectors"][over] = output[inputs, :, positions].numpy()
                    made[name]["patches"][over] = unfolded[inputs, :, positions].numpy()
                made[name]["classes"][over] = self.data[split][1][inputs]
        return made

    @functools.cache  # noqa: B019 -- a case lives as long as its tests
    def layers(self, k: int = 5) -> dict[str, LayerPipeline]:
        Spy.seen.clear()
        self.measure(Spy(k))
        return {
            name: LayerPipeline(
                **fields,
                seen={over: Spy.seen[name, over] for over in SAMPLES},
                components=self.extractor.components,
                k=k,
            )
            for name, fields in self._features.items()
        }

    def whole_input(self, name: str, x: NDArray[np.float32]) -> Floats:
        kept = []
        handle = dict(self.net.named_modules())[name].register_forward_hook(
            lambda layer, args, output: kept.append(args[0].movedim(1, -1).flatten(1).numpy())
        )
        with torch.no_grad():
            self.net(torch.from_numpy(x))
        handle.remove()
        return kept[0]


def cifar_case(number: int, extractor: Extractor) -> Case:
    if not CIFAR.is_dir():
        pytest.skip(f"{CIFAR} is not there: CIFAR-10 networks are shared among the authors only")
    net = CifarNet()
    net.load_state_dict(torch.load(CIFAR / f"net_{number}.pth", map_location="cpu", weights_only=True))
    arrays = np.load(CIFAR / "cifar10_subset.npz")
    data = {}
    for split, count in (("train", 800), ("test", 400)):
        x = (arrays[f"x_{split}"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5
        data[split] = (x, arrays[f"y_{split}"][:count])
    return Case(net.eval(), data, extractor)


@pytest.fixture(scope="module")
def digits_data(digits: tuple[Any, Any]) -> Data:
    return dict(zip(SPLITS, digits, strict=True))


def prototypes(digits_net: nn.Module, digits_data: Data, extractor: Extractor) -> Case:
    """Five digits with noise: features of whole inputs lie in five clusters far apart."""
    rng = np.random.default_rng(0)
    x, y = digits_data["train"]
    chosen = np.array([np.flatnonzero(y == digit)[0] for digit in (0, 1, 4, 6, 7)])
    data = {}
    for split, count in (("train", 400), ("test", 250)):
        which = chosen[rng.integers(5, size=count)]
        data[split] = (x[which] + rng.normal(0, 0.02, (count, 1, 8, 8)).astype(np.float32), y[which])
    return Case(digits_net, data, extractor)


def colored_case(extractor: Extractor) -> Case:
    """The same network on images of three channels that are made here: stripes of ten directions and colors."""
    rng = np.random.default_rng(0)
    angles, colors = np.linspace(0, np.pi, 10, endpoint=False), rng.normal(size=(10, 3))
    i, j = np.mgrid[:32, :32]
    data = {}
    for split, count in (("train", 500), ("test", 300)):
        y = rng.integers(10, size=count)
        phase = rng.uniform(0, 2 * np.pi, count)[:, None, None]
        along = np.cos(angles[y])[:, None, None] * i + np.sin(angles[y])[:, None, None] * j
        x = colors[y][:, :, None, None] * np.sin(along / 2 + phase)[:, None] + rng.normal(0, 0.3, (count, 3, 32, 32))
        data[split] = (x.astype(np.float32), y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = CifarNet()
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for step in range(40):
            rows = slice(step % 5 * 100, step % 5 * 100 + 100)
            optimizer.zero_grad()
            x, y = (torch.from_numpy(array[rows]) for array in data["train"])
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return Case(net.eval(), data, extractor)


CASES = ("digits", "digits, fitted on a part", "colors", "cifar net_0", "cifar net_3")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, digits_net: nn.Module, digits_data: Data) -> Case:
    """Fewer pixels than there are, so that the sample matters."""
    if request.param.startswith("digits"):
        return Case(digits_net, digits_data, ReceptiveField(6000, fit_cap=6000 if request.param == "digits" else 1500))
    if request.param == "colors":
        return colored_case(ReceptiveField(cap=5000))
    return cifar_case(int(request.param[-1]), ReceptiveField(cap=8000))


@pytest.fixture(scope="module")
def defaults(case: Case) -> dict[str, dict[str, float]]:
    return case.measure(DaviesBouldin(), Roughness(), Confidence())


def test_features_are_those_of_hooks_and_unfold(case: Case) -> None:
    """Sums of hundreds of products, of other batch sizes: to float32's rounding of the largest of them."""
    for layer in case.layers().values():
        for over in SAMPLES:
            seen = layer.seen[over]
            for field, expected in (("vectors", layer.vectors[over]), ("patches", layer.patches[over])):
                np.testing.assert_allclose(seen[field], expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


def test_projections_are_those_of_sklearn_up_to_sign(case: Case) -> None:
    for layer in case.layers().values():
        for over in SAMPLES:
            found, expected = layer.seen[over]["projected"], layer.projected[over]
            sign = np.sign((found * expected).sum(0))
            np.testing.assert_allclose(found, sign * expected, atol=1e-4 * np.abs(expected).max())


def test_davies_bouldin_is_that_of_sklearn(case: Case, defaults: dict[str, dict[str, float]]) -> None:
    for name, layer in case.layers().items():
        expected = davies_bouldin_score(layer.projected["train"], layer.classes["train"])
        np.testing.assert_allclose(defaults["davies_bouldin"][name], expected, rtol=1e-5)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_clusters_are_those_of_sklearn_where_there_is_one_solution(case: Case, k: int) -> None:
    for layer in case.layers(k).values():
        if layer.unique:
            for over in SAMPLES:
                assert adjusted_rand_score(layer.labels[over], layer.best_labels[over]) == 1


@pytest.mark.parametrize("extractor", [WholeTensor(), ReceptiveField()], ids=lambda extractor: extractor.name)
def test_the_whole_pipeline_is_that_of_sklearn_where_there_is_one_solution(
    digits_net: nn.Module, digits_data: Data, extractor: Extractor
) -> None:
    case = prototypes(digits_net, digits_data, extractor)
    values = case.measure(Roughness(), Confidence(components=1))
    unique = {name: layer for name, layer in case.layers().items() if layer.unique}
    assert list(unique) == (case.names if isinstance(extractor, WholeTensor) else ["fc1", "fc2"])
    for name, layer in unique.items():
        assert adjusted_rand_score(layer.labels["test"], layer.best_labels["test"]) == 1
        patches = {over: layer.patches[over].astype(np.float64) for over in SAMPLES}
        if isinstance(extractor, WholeTensor):
            pca = PCA(min(10, patches["fit"].shape[1]), svd_solver="full").fit(patches["fit"])
            patches["test"] = pca.transform(patches["test"])
        expected = davies_bouldin_score(patches["test"], layer.best_labels["test"])
        variable = "roughness_projected" if isinstance(extractor, WholeTensor) else "roughness"
        np.testing.assert_allclose(values[variable][name], expected, rtol=1e-4)
        expected = layer.log_density("component", layer.best_labels)["test"].mean()
        np.testing.assert_allclose(values["confidence_unweighted"][name], expected, rtol=1e-4)


def test_clusters_are_as_tight_as_those_of_sklearn(case: Case) -> None:
    """Features have many local optima: on average over layers no worse than 0.1%, in no layer worse than 1%."""
    excess = []
    for layer in case.layers().values():
        points, labels = layer.seen["fit"]["projected"], layer.labels["fit"]
        inertia = sum(((points[labels == i] - points[labels == i].mean(0)) ** 2).sum() for i in range(5))
        excess.append(inertia / layer.best.inertia_ - 1)
    assert np.mean(excess) <= 0.001
    assert max(excess) <= 0.01


def test_vectors_go_to_the_nearest_center_of_those_that_centers_were_fitted_on(case: Case) -> None:
    for layer in case.layers().values():
        fitted, labels = layer.projected["fit"], layer.labels["fit"]
        centers = np.array([fitted[labels == i].mean(0) for i in range(5)])
        for over in SAMPLES:
            distance = ((layer.projected[over][:, None] - centers) ** 2).sum(2)
            np.testing.assert_array_equal(layer.labels[over], distance.argmin(1))


def test_roughness_is_that_of_sklearn(case: Case, defaults: dict[str, dict[str, float]]) -> None:
    """To the digit for the package's clusters, within 1% for scikit-learn's where both came to the same optimum."""
    alike = 0
    for name, layer in case.layers().items():
        found = defaults["roughness"][name]
        np.testing.assert_allclose(found, davies_bouldin_score(layer.patches["test"], layer.labels["test"]), rtol=1e-5)
        if layer.alike:
            alike += 1
            expected = davies_bouldin_score(layer.patches["test"], layer.best_labels["test"])
            np.testing.assert_allclose(found, expected, rtol=0.01)
    assert alike


def test_mean_log_density_is_that_of_sklearn(case: Case) -> None:
    """One component has one solution: to the digit for the package's clusters, within 1% for scikit-learn's."""
    alike = 0
    values = case.measure(Confidence(components=1))["confidence_unweighted"]
    for name, layer in case.layers().items():
        expected = layer.log_density("component", layer.labels)["test"].mean()
        np.testing.assert_allclose(values[name], expected, rtol=1e-5, atol=1e-4)
        if layer.alike:
            alike += 1
            expected = layer.log_density("component", layer.best_labels)["test"].mean()
            # 1% of the logarithm, or of the density where that is less strict: the logarithm may be near 0.
            assert abs(float(values[name]) - expected) <= 0.01 * max(1.0, abs(expected))
    assert alike


def record_fits(fits: list[Mixtures], monkeypatch: pytest.MonkeyPatch) -> None:
    """Append the mixtures of all training vectors of each layer; few vectors have others of a part of them before."""

    def alone(points: Tensor, labels: Tensor, *args: Any, **options: Any) -> Mixtures:
        fits.append(fit_mixtures(points, labels, *args, **options))
        return fits[-1]

    def apart(points: Tensor, *args: Any) -> tuple[Mixtures, Mixtures]:
        both = fit_mixtures_apart(points, *args)
        fits.extend(both[::-1])
        return both

    monkeypatch.setattr("genmeasures.measures.confidence.fit_mixtures", alone)
    monkeypatch.setattr("genmeasures.measures.confidence.fit_mixtures_apart", apart)


def test_log_densities_of_the_mixtures_found_are_those_of_scipy(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same components and the same projected vectors, to 1e-6."""
    fits: list[Mixtures] = []

    record_fits(fits, monkeypatch)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)  # layers one after another: the fits come in their order
    found = case.measure(Confidence())
    for (name, layer), mixtures in zip(case.layers().items(), fits[1::2], strict=True):
        points = layer.seen["test"]["projected"]
        covariances = np.linalg.inv((mixtures.precisions @ mixtures.precisions.mT).numpy())
        each = zip(mixtures.means.numpy(), covariances, strict=True)
        density = np.max([multivariate_normal(mean, cov, allow_singular=True).logpdf(points) for mean, cov in each], 0)
        norms = np.linalg.norm(layer.seen["test"]["vectors"].astype(np.float64), axis=1)
        np.testing.assert_allclose(found["confidence_unweighted"][name], density.mean(), rtol=1e-6)
        np.testing.assert_allclose(found["confidence"][name], np.average(density, weights=norms), rtol=1e-6)


@pytest.mark.parametrize("over", ["component", "mixture"])
def test_mixtures_are_where_sklearn_stays(case: Case, over: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three components have many optima; scikit-learn, started at the one found, ends within 1% of it.

    That is 1% of the mean log density, or of the density where the logarithm is near 0.
    """
    fits: list[Mixtures] = []

    record_fits(fits, monkeypatch)
    found = case.measure(Confidence(over=over))["confidence_unweighted"]
    for (name, layer), mixtures in zip(case.layers().items(), fits[1::2], strict=True):
        expected = layer.log_density(over, layer.labels, mixtures)["test"].mean()
        np.testing.assert_allclose(found[name], expected, rtol=0.01, atol=0.01)


# Every option, on the digits. ------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[ReceptiveField(cap=4000, components=5), WholeTensor(cap=250, components=4)], ids=repr
)
def small(request: pytest.FixtureRequest, digits_net: nn.Module, digits_data: Data) -> Case:
    return Case(digits_net, digits_data, request.param)


def index(vectors: Floats, labels: Labels, spread: str) -> float:
    """The Davies–Bouldin index, in float64, by its definition."""
    groups = [vectors[labels == label].astype(np.float64) for label in np.unique(labels)]
    centroids = np.array([group.mean(0) for group in groups])
    distances = [np.linalg.norm(group - centroid, axis=1) for group, centroid in zip(groups, centroids, strict=True)]
    s = np.array([d.mean() if spread == "mean" else np.sqrt((d**2).mean()) for d in distances])
    between = np.linalg.norm(centroids[:, None] - centroids, axis=2)
    np.fill_diagonal(between, np.inf)
    return float(((s[:, None] + s) / between).max(1).mean())


def test_the_reference_index_is_that_of_sklearn(small: Case) -> None:
    layer = small.layers()["conv2"]
    expected = davies_bouldin_score(layer.patches["test"], layer.classes["test"])
    np.testing.assert_allclose(index(layer.patches["test"], layer.classes["test"], "mean"), expected, rtol=1e-5)


@pytest.mark.parametrize("space", ["pca", "pixel", "patch"])
@pytest.mark.parametrize("spread", ["mean", "rms"])
@pytest.mark.parametrize("split", SPLITS)
def test_options_of_davies_bouldin(small: Case, space: str, spread: str, split: Any) -> None:
    found = small.measure(DaviesBouldin(space=space, spread=spread, split=split))["davies_bouldin"]
    for name, layer in small.layers().items():
        vectors = {"pca": layer.projected, "pixel": layer.vectors, "patch": layer.patches}[space][split]
        np.testing.assert_allclose(found[name], index(vectors, layer.classes[split], spread), rtol=1e-5)


@pytest.mark.parametrize("space", ["pca", "patch"])
def test_davies_bouldin_of_clusters(small: Case, space: str) -> None:
    found = small.measure(DaviesBouldin(labelers.KMeans(), space=space))["davies_bouldin"]
    for name, layer in small.layers().items():
        vectors = layer.projected if space == "pca" else layer.patches
        np.testing.assert_allclose(found[name], index(vectors["train"], layer.labels["train"], "mean"), rtol=1e-5)


def silhouette_of_all(vectors: Floats, labels: Labels, spread: str) -> float:
    return float(silhouette_score(vectors, labels))


def calinski_harabasz(vectors: Floats, labels: Labels, spread: str) -> float:
    return float(calinski_harabasz_score(vectors, labels))


REFERENCES = {"davies_bouldin": index, "calinski_harabasz": calinski_harabasz, "silhouette": silhouette_of_all}


def projected_by_sklearn(fitted_on: Floats, vectors: Floats, components: int) -> Floats:
    fit = PCA(min(components, fitted_on.shape[1]), svd_solver="full").fit(fitted_on.astype(np.float64))
    return fit.transform(vectors.astype(np.float64))


@pytest.fixture
def no_subsamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """All training patches are fitted on, and the silhouette is that of all vectors."""
    monkeypatch.setattr("genmeasures.engine.layer._PATCHES", 10**6)
    monkeypatch.setattr("genmeasures.measures.cluster_index._SILHOUETTE", 10**6)


@pytest.mark.parametrize(
    ("name", "spread"),
    [("davies_bouldin", "mean"), ("davies_bouldin", "rms"), ("calinski_harabasz", "mean"), ("silhouette", "mean")],
)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.usefixtures("no_subsamples")
def test_options_of_roughness(small: Case, name: str, spread: str, split: Any) -> None:
    found = small.measure(Roughness(input_pca=3, index=name, spread=spread, split=split))
    for layer_name, layer in small.layers().items():
        patches, labels = layer.patches[split].astype(np.float64), layer.labels[split]
        expected = REFERENCES[name](patches, labels, spread)
        np.testing.assert_allclose(found["roughness"][layer_name], expected, rtol=1e-5, atol=1e-6)
        projected = projected_by_sklearn(layer.patches["fit"], patches, 3)
        expected = REFERENCES[name](projected, labels, spread)
        np.testing.assert_allclose(found["roughness_projected"][layer_name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.usefixtures("no_subsamples")
def test_pushforward(small: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package's centers in scikit-learn's components of the pixels at the centers of the patches."""
    fitted: list[Any] = []

    class Recorded(_Pushforward):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            fitted.append(self)

    monkeypatch.setattr("genmeasures.measures.roughness._Pushforward", Recorded)
    found = small.measure(Roughness(input_pca=3, index=name, direction="pushforward"))
    for fit, (layer_name, layer) in zip(fitted, small.layers().items(), strict=True):
        pixels = layer.patches
        if layer_name.startswith("conv") and isinstance(small.extractor, ReceptiveField):
            pixels = {over: np.array_split(patches, 9, axis=1)[4] for over, patches in layer.patches.items()}
        projection = PCA(min(small.extractor.components, pixels["fit"].shape[1]), svd_solver="full")
        fitted_on = projection.fit_transform(pixels["fit"].astype(np.float64))
        scored = projection.transform(pixels["test"].astype(np.float64))
        clusters = fit.label(torch.from_numpy(pixels["fit"])).numpy()
        centers = np.array([fitted_on[clusters == cluster].mean(0) for cluster in range(5)])
        labels = ((scored[:, None] - centers) ** 2).sum(2).argmin(1)
        vectors = layer.vectors["test"].astype(np.float64)
        expected = REFERENCES[name](vectors, labels, "mean")
        np.testing.assert_allclose(found["roughness"][layer_name], expected, rtol=1e-5, atol=1e-6)
        expected = REFERENCES[name](projected_by_sklearn(layer.vectors["fit"], vectors, 3), labels, "mean")
        np.testing.assert_allclose(found["roughness_projected"][layer_name], expected, rtol=1e-5, atol=1e-6)


def test_projected_roughness_is_that_of_sklearn(case: Case) -> None:
    """On the components of the same 1,000 of thousands of patches, or of all whole inputs."""
    check_projected(case)


def test_projected_roughness_of_long_patches_is_that_of_sklearn(digits_data: Data) -> None:
    """288 dimensions, whose components come from Lanczos iteration."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    check_projected(Case(net, digits_data, ReceptiveField(cap=4000)))


def check_projected(case: Case) -> None:
    found = case.measure(Roughness())["roughness_projected"]
    sampled = 0
    for index_, (name, layer) in enumerate(case.layers().items()):
        fitted_on = layer.patches["fit"]
        if isinstance(case.extractor, ReceptiveField) and len(fitted_on) > 1000:
            sampled += 1
            generator = generator_for(0, "patches", index_)
            fitted_on = fitted_on[torch.randperm(len(fitted_on), generator=generator)[:1000].numpy()]
        projected = projected_by_sklearn(fitted_on, layer.patches["test"], 10)
        expected = davies_bouldin_score(projected, layer.labels["test"])

        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    assert sampled or isinstance(case.extractor, WholeTensor)


@pytest.mark.parametrize("over", ["component", "mixture"])
@pytest.mark.parametrize("density", ["log", "linear"])
@pytest.mark.parametrize("split", SPLITS)
def test_options_of_confidence(small: Case, over: str, density: str, split: Any) -> None:
    """A mixture of one component has one solution, so that values must agree to the digit."""
    found = small.measure(Confidence(components=1, over=over, density=density, split=split))
    for name, layer in small.layers().items():
        c = layer.log_density(over, layer.labels)[split]
        c = np.exp(c) if density == "linear" else c
        norms = np.linalg.norm(layer.vectors[split].astype(np.float64), axis=1)
        np.testing.assert_allclose(found["confidence_unweighted"][name], c.mean(), rtol=1e-4)
        weighted = (c * norms).mean() if density == "linear" else np.average(c, weights=norms)
        np.testing.assert_allclose(found["confidence"][name], weighted, rtol=1e-4)


def test_over_and_components_of_confidence_are_told_apart(small: Case) -> None:
    """A mixture's density is no more than its densest component's, and no less than that times its weight."""
    # Two clusters of so few inputs are large enough for two components.
    values = {
        (over, m): small.measure(Confidence(labelers.KMeans(2), components=m, over=over))["confidence_unweighted"]
        for over in ("component", "mixture")
        for m in (1, 2)
    }
    for name in small.names:
        np.testing.assert_allclose(values["component", 1][name], values["mixture", 1][name], rtol=1e-9)
        assert values["component", 2][name] > values["mixture", 2][name]
        assert values["component", 2][name] > values["component", 1][name]


@pytest.mark.parametrize("k", [2, 3])
def test_options_of_the_labeler(small: Case, k: int) -> None:
    labeler = labelers.KMeans(k)
    found = small.measure(Roughness(labeler), Confidence(labeler, components=1))
    for name, layer in small.layers(k).items():
        assert set(layer.labels["train"]) == set(range(k))
        expected = index(layer.patches["test"], layer.labels["test"], "mean")
        np.testing.assert_allclose(found["roughness"][name], expected, rtol=1e-5)
        expected = layer.log_density("component", layer.labels)["test"].mean()
        np.testing.assert_allclose(found["confidence_unweighted"][name], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", [ReceptiveField, WholeTensor])
def test_the_linear_tap_reads_before_the_activation(
    kind: type[Extractor], digits_net: nn.Module, digits_data: Data
) -> None:
    case = Case(digits_net, digits_data, kind(cap=400, tap="linear"))
    found = case.measure(DaviesBouldin(space="pixel"), Roughness())
    for name, layer in case.layers().items():
        assert layer.vectors["train"].min() < 0
        np.testing.assert_allclose(layer.seen["train"]["vectors"], layer.vectors["train"], rtol=1e-5, atol=1e-5)
        expected = index(layer.vectors["train"], layer.classes["train"], "mean")
        np.testing.assert_allclose(found["davies_bouldin"][name], expected, rtol=1e-5)
        expected = index(layer.patches["test"], layer.labels["test"], "mean")
        np.testing.assert_allclose(found["roughness"][name], expected, rtol=1e-5)


def test_without_a_cap_every_pixel_counts(digits_net: nn.Module, digits_data: Data) -> None:
    data = {split: (x[:60], y[:60]) for split, (x, y) in digits_data.items()}
    case = Case(digits_net, data, ReceptiveField(cap=None))
    found = case.measure(DaviesBouldin(space="pixel"))["davies_bouldin"]
    hooked = by_hooks(digits_net, data["train"][0], case.names[:-1])
    for name, (output, _) in hooked.items():
        vectors = output.transpose(1, 2).reshape(-1, output.shape[1]).numpy()
        labels = np.repeat(data["train"][1], output.shape[2])
        np.testing.assert_allclose(found[name], davies_bouldin_score(vectors, labels), rtol=1e-5)
