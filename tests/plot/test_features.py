"""Figures of a model's features: axes against scikit-learn's PCA, numpy's eigenvectors and the labels themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from sklearn.decomposition import PCA
from sklearn.metrics import davies_bouldin_score
from torch import Tensor, nn

from genmeasures import plot
from genmeasures.errors import DataError, ModelError, OptionError
from genmeasures.extractors import WholeTensor
from genmeasures.labelers import Histogram, KMeans
from genmeasures.plot.clusters import covariance
from genmeasures.plot.colors import PALETTE, label_colors
from genmeasures.report.drawing import note
from genmeasures.statistics.mixture import fit_mixtures


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 1, 7, 7, generator=generator), torch.arange(20) % 3


def pixels(model: nn.Module, inputs: Tensor, depth: int) -> np.ndarray[Any, Any]:
    """All pixels (n, channels) after ``depth`` modules."""
    with torch.no_grad():
        output = nn.Sequential(*list(model)[:depth])(inputs)
    return output.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()


def drawn(ax: Any) -> np.ndarray[Any, Any]:
    """Coordinates of the points of a panel, sorted."""
    points = ax.collections[0]
    rows = np.stack(points._offsets3d, 1) if ax.name == "3d" else np.asarray(points.get_offsets())
    return rows[np.lexsort(np.round(rows.T, 5))]


def assert_same_up_to_signs(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Principal components are defined up to their signs: moments of each coordinate and pair are compared."""
    assert found.shape == expected.shape
    for column in range(found.shape[1]):
        one, other = np.sort(found[:, column]), np.sort(expected[:, column])
        if not np.allclose(one, other, atol=1e-4):
            np.testing.assert_allclose(one, -other[::-1], atol=1e-4)
    np.testing.assert_allclose(
        np.sort(np.linalg.norm(found, axis=1)), np.sort(np.linalg.norm(expected, axis=1)), atol=1e-4
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_manifold_is_the_projection_of_scikit_learn(
    model: nn.Module, data: tuple[Tensor, Tensor], dimensions: Any
) -> None:
    figure = plot.manifold(model, data, layers=["0", "2"], dimensions=dimensions, points=10_000)
    for ax, depth in zip(figure.axes, (2, 4), strict=True):
        expected = PCA(dimensions).fit_transform(pixels(model, data[0], depth))
        assert_same_up_to_signs(drawn(ax), expected)


def test_points_have_the_color_of_their_class_and_panels_their_index(
    model: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    (ax,) = plot.manifold(model, data, layers=["2"], dimensions=2, points=10_000).axes
    points = ax.collections[0]
    counts = {to_hex(color): 0 for color in PALETTE[:3]}
    for color in points.get_facecolors():
        counts[to_hex(color)] += 1
    assert list(counts.values()) == [7 * 9, 7 * 9, 6 * 9]
    labels = np.repeat(data[1].numpy(), 9)
    expected = davies_bouldin_score(pixels(model, data[0], 4), labels)  # four channels: PCA keeps all distances
    assert ax.get_title() == f"2\nDavies–Bouldin {expected:.2f}"


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_labels_are_named_by_their_labeler(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    inputs, _ = data
    assert legend(plot.manifold(model, data, layers=[0])) == ["class 0", "class 1", "class 2"]
    assert legend(plot.manifold(model, (inputs,), layers=[0], labeler=KMeans(2))) == ["cluster 0", "cluster 1"]
    targets = inputs.mean((1, 2, 3))
    assert legend(plot.manifold(model, (inputs, targets), layers=[0], labeler=Histogram(2))) == ["bin 0", "bin 1"]


def test_a_figure_depends_on_the_seed_alone(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    inputs, classes = data
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    shuffled = inputs[order], classes[order]
    settings: dict[str, Any] = {"layers": ["0"], "dimensions": 2, "points": 50}
    one = plot.manifold(model, data, **settings).axes[0]
    other = plot.manifold(model, shuffled, batch_size=3, **settings).axes[0]
    np.testing.assert_allclose(drawn(one), drawn(other), atol=1e-5)
    assert len(drawn(one)) == 50
    third = plot.manifold(model, data, seed=1, **settings).axes[0]
    assert not np.allclose(drawn(one), drawn(third), atol=1e-3)


def test_layers_with_one_point_per_input(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    (ax,) = plot.manifold(model, data, layers=[0], extractor=WholeTensor()).axes
    assert len(drawn(ax)) == 20


def test_a_layer_of_one_channel_has_a_third_component_of_zeros(data: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Tanh()).eval()
    points = drawn(plot.manifold(net, data, labeler=KMeans(2)).axes[0])
    assert np.ptp(points[:, 0]) > 0
    assert not points[:, 1:].any()


def test_a_constant_layer_has_its_status_as_a_note(data: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1.0)
    with pytest.raises(ModelError, match="no layer of the model can be drawn: undefined: constant"):
        plot.manifold(net, data)
    branches = _Branches(net[0], nn.Conv2d(1, 2, 3)).eval()
    first, second = plot.manifold(branches, data).axes
    assert "constant" in first.texts[0].get_text()
    assert len(drawn(second)) == 500


class _Branches(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.one(x)) + self.other(x)


def test_errors_of_the_arguments(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(OptionError, match="dimensions must be 2 or 3, got 4"):
        plot.manifold(model, data, dimensions=4)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="points must be an integer ≥ 1, got 0"):
        plot.manifold(model, data, points=0)
    with pytest.raises(DataError, match="target"):
        plot.manifold(model, (data[0],))
    with pytest.raises(OptionError, match="k must be one or several integers ≥ 2, got 1"):
        plot.clusters(model, data, k=1)
    with pytest.raises(OptionError, match="components must be one or several"):
        plot.clusters(model, data, components=[])
    with pytest.raises(OptionError, match=r"no layer 'conv1'.*known: 0, 2, 5"):
        plot.clusters(model, data, "conv1")


def ellipses(ax: Any) -> list[Ellipse]:
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


def test_clusters_are_a_grid_of_settings(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    figure = plot.clusters(model, data, "0", k=(2, 3), components=(2, 6), mixtures=(0, 2))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:4] == ["d = 2, k = 2", "d = 2, k = 2, m = 2", "d = 2, k = 3", "d = 2, k = 3, m = 2"]
    assert titles[4:] == [title.replace("d = 2", "d = 6") for title in titles[:4]]
    assert [len(ellipses(ax)) for ax in figure.axes] == [0, 4, 0, 6] * 2
    assert legend(figure) == ["cluster 0", "cluster 1", "cluster 2"]


def test_points_of_clusters_are_the_projection_of_scikit_learn(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    (ax,) = plot.clusters(model, (data[0],), "0", k=3, components=4, points=10_000).axes
    assert_same_up_to_signs(drawn(ax), PCA(2).fit_transform(pixels(model, data[0], 2)))


def test_one_gaussian_is_mean_and_covariance_of_its_cluster(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """Of the points with its color: center, and half axes of two standard deviations along numpy's eigenvectors."""
    (ax,) = plot.clusters(model, data, "0", k=3, components=6, mixtures=1, points=10_000).axes
    rows = np.asarray(ax.collections[0].get_offsets())
    colors = np.array([to_hex(color) for color in ax.collections[0].get_facecolors()])
    assert len(ellipses(ax)) == 3
    for ellipse in ellipses(ax):
        members = rows[colors == to_hex(ellipse.get_edgecolor())]
        assert len(members) > 10
        np.testing.assert_allclose(ellipse.center, members.mean(0), atol=1e-6)
        variances, axes = np.linalg.eigh(np.cov(members.T, bias=True))
        np.testing.assert_allclose([ellipse.width, ellipse.height], 4 * np.sqrt(variances), rtol=1e-4)
        turned = np.radians(ellipse.angle)
        assert abs(np.cos(turned) * axes[0, 0] + np.sin(turned) * axes[1, 0]) == pytest.approx(1, abs=1e-5)


def test_covariance_in_two_of_more_dimensions() -> None:
    points = np.random.default_rng(0).normal(size=(500, 4)) @ np.diag([3.0, 1.0, 2.0, 0.5]) @ np.ones((4, 4)).cumsum(0)
    mixtures = fit_mixtures(
        torch.from_numpy(points), torch.zeros(500, dtype=torch.int64), 1, torch.Generator().manual_seed(0)
    )
    expected = np.cov(points.T, bias=True)
    np.testing.assert_allclose(covariance(mixtures, 0), expected[:2, :2], atol=1e-5 * np.trace(expected))


def test_few_labels_have_the_palette_and_many_a_scale() -> None:
    few = label_colors([0, 2])
    assert [to_hex(color) for color in few.values()] == [PALETTE[0].lower(), PALETTE[2].lower()]
    many = label_colors(range(30))
    assert len({to_hex(color) for color in many.values()}) == 30
    brightness = [sum(color[:3]) for color in label_colors(range(5), ordered=True).values()]
    assert brightness == sorted(brightness)


def test_a_figure_leaves_pyplot_alone(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figure = plot.clusters(model, data, "0", k=2)
    note(figure.axes[0], "")
    assert pyplot.get_fignums() == before
