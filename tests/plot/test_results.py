"""Figures of results: what is drawn is what the datasets hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from genmeasures_ars import ARS, ClassSelectivity, CumulativeAblation
from genmeasures_jacobian import JacobianNorm, approximation, lower_bound, upper_bound
from genmeasures_transitions import RegionCount, TransitionCount
from matplotlib.colors import to_hex
from torch import Tensor, nn

import genmeasures
from genmeasures import plot
from genmeasures.errors import OptionError, ResultError
from genmeasures.plot.colors import PALETTE
from genmeasures.plot.regions import boundaries
from genmeasures.report.drawing import new_figure, write_figure

Data = tuple[Tensor, Tensor]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 3)
    ).eval()


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 1, 6, 6, generator=generator), torch.arange(40) % 3


@pytest.fixture(scope="module")
def kernels(data: Data) -> xr.Dataset:
    quick = {"steps": 3, "starts": 2, "tries": 2, "keep_images": True}
    measures: dict[str, Any] = {
        "cumulative_ablation": CumulativeAblation(ClassSelectivity()),
        "class_selectivity": ClassSelectivity(),
        "ars": ARS(**quick),
        "am": ARS("am", **quick),
    }
    models = {"first": network(0), "second": network(1)}
    return genmeasures.measure(models, data, data, measures=measures)


@pytest.fixture(scope="module")
def sensitivity(data: Data) -> xr.Dataset:
    measures = [
        JacobianNorm(),
        TransitionCount(points=64, trajectories=2, curvature_points=16),
        RegionCount(lines=1, resolution=12),
    ]
    return genmeasures.measure({"first": network(0), "second": network(1)}, data, data, measures=measures)


def test_ablation_curves_begin_at_the_accuracy_of_the_whole_model(kernels: xr.Dataset) -> None:
    figure = plot.ablation(kernels, "second")
    panels = [ax for ax in figure.axes if ax.lines]
    assert [ax.get_title() for ax in panels] == ["0", "2"]
    for ax, layer, count in zip(panels, (0, 1), (4, 6), strict=True):
        assert [line.get_label() for line in ax.lines] == ["ascending order", "descending order", "random order"]
        for line, order in zip(ax.lines, ("ascending", "descending", "random"), strict=True):
            curve = kernels[f"ablation_{order}"].sel(model="second").values[layer, :count]
            whole = float(kernels.ablation_none.sel(model="second"))
            np.testing.assert_array_equal(line.get_ydata(), [whole, *curve])
            np.testing.assert_array_equal(line.get_xdata(), range(count + 1))


def test_bars_are_the_scores_that_the_ablation_names(kernels: xr.Dataset) -> None:
    (panel,) = (ax for ax in plot.ablation(kernels, layers=["2"]).axes if ax.patches)
    scores = kernels.class_selectivity_kernel.sel(model="first").values[1]
    np.testing.assert_array_equal([bar.get_height() for bar in panel.patches], np.sort(scores[np.isfinite(scores)]))
    assert panel.get_ylabel() == "class selectivity"
    bare = plot.ablation(kernels.drop_vars("class_selectivity_kernel"))
    assert not any(ax.patches for ax in bare.axes)


def test_layers_of_a_result_are_chosen_by_name_or_index(kernels: xr.Dataset) -> None:
    for layer in ("2", 1, -2):
        assert [ax.get_title() for ax in plot.ablation(kernels, layers=[layer]).axes if ax.lines] == ["2"]
    with pytest.raises(OptionError, match=r"'first' has no layer 'conv' \(known: 0, 2, 5\)"):
        plot.ablation(kernels, layers=["conv"])
    with pytest.raises(OptionError, match=r"has no layer 3 "):
        plot.ablation(kernels, layers=[3])
    with pytest.raises(
        ResultError, match=r"ablation_ascending of the layer '5' has no value: undefined: a linear layer"
    ):
        plot.ablation(kernels, layers=["5"])


def test_images_of_two_measures_are_below_each_other(kernels: xr.Dataset) -> None:
    figure = plot.images(kernels, "second", layer="2", measures=["am", "ars"])
    axes = np.array(figure.axes).reshape(2, 6)
    assert [row[0].get_ylabel() for row in axes] == ["AM", "IAM"]
    for row, name in zip(axes, ("am", "ars"), strict=True):
        for kernel, ax in enumerate(row):
            image = kernels[f"{name}_image"].sel(model="second").values[1, kernel, 0]
            expected = (image - image.min()) / (image.max() - image.min())
            np.testing.assert_allclose(ax.images[0].get_array(), expected)
            assert f"ARS {float(kernels[f'{name}_kernel'].sel(model='second')[1, kernel]):.2f}" in ax.get_title()
    assert axes[0, 3].get_title().startswith("kernel 3, ")
    assert len([ax for ax in plot.images(kernels, kernels=2).axes if ax.images]) == 2
    with pytest.raises(OptionError, match="measures must be a list"):
        plot.images(kernels, measures="ars")


def test_three_channels_are_colors() -> None:
    dims = ("model", "layer", "kernel", "image_channel", "image_row", "image_column")
    values = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4, 5))
    values[0, 0, 1] = np.nan
    names = {"model": ["net"], "layer_name": (("model", "layer"), [["conv"]])}
    (ax,) = (ax for ax in plot.images(xr.Dataset({"ars_image": (dims, values)}, names)).axes if ax.images)
    drawn = np.asarray(ax.images[0].get_array())
    assert drawn.shape == (4, 5, 3)
    image = values[0, 0, 0].transpose(1, 2, 0)
    np.testing.assert_allclose(drawn, (image - image.min()) / np.ptp(image))


def test_points_of_both_panels_are_the_inputs(sensitivity: xr.Dataset) -> None:
    one = sensitivity.sel(model="second")
    loss, correct = one.jacobian_norm_sample_loss.values, one.jacobian_norm_sample_correct.values
    for ax, name in zip(plot.bounds(sensitivity, "second").axes, ("_target", ""), strict=True):
        norm = one[f"jacobian_norm_sample{name}"].values
        for points, value, color in zip(ax.collections, (1, 0), PALETTE, strict=False):
            assert to_hex(points.get_facecolors()[0]) == color.lower()
            of = correct == value
            np.testing.assert_array_equal(points.get_offsets(), np.stack([loss[of], norm[of]], 1))


def test_curves_are_the_bounds_of_the_plugin(sensitivity: xr.Dataset) -> None:
    one = sensitivity.sel(model="second")
    square = float(one.logit_gradient_square)
    left, right = plot.bounds(sensitivity, "second").axes
    grid = left.lines[0].get_xdata()
    np.testing.assert_array_equal(grid, np.sort(one.jacobian_norm_sample_loss.values))
    assert [line.get_label() for line in left.lines] == ["lower bound", "upper bound"]
    assert [line.get_label() for line in right.lines] == ["lower bound", "approximation"]
    for line, expected in (
        (left.lines[0], lower_bound(grid, square, 3)),
        (left.lines[1], upper_bound(grid, square)),
        (right.lines[0], lower_bound(grid, square, 3)),
        (right.lines[1], approximation(grid, square, 3)),
    ):
        np.testing.assert_allclose(line.get_ydata(), expected)


def test_inputs_without_a_logarithm_are_counted(sensitivity: xr.Dataset) -> None:
    ds = sensitivity.copy(deep=True)
    ds.jacobian_norm_sample.values[0, :3] = 0
    assert [ax.get_title(loc="right") for ax in plot.bounds(ds).axes] == ["", "3 outside"]
    ds.jacobian_norm_sample_loss.values[0] = 0
    with pytest.raises(ResultError, match="'first' has no input with a cross-entropy above 0"):
        plot.bounds(ds)


def test_a_profile_is_closed_and_marks_the_inputs(sensitivity: xr.Dataset) -> None:
    one = sensitivity.sel(model="second").isel(trajectory=1)
    length = float(one.trajectory_position[1]) * 16
    upper, lower = plot.profile(sensitivity, "second", trajectory=1).axes
    for ax, name in ((upper, "jacobian_profile"), (lower, "transition_density")):
        curve, mean, *anchors = ax.lines
        np.testing.assert_allclose(curve.get_xdata(), [*one.trajectory_position.values, length])
        np.testing.assert_array_equal(curve.get_ydata(), [*one[name].values, one[name].values[0]])
        assert mean.get_ydata()[0] == pytest.approx(float(one[name].mean()))
        np.testing.assert_array_equal([line.get_xdata()[0] for line in anchors], one.trajectory_anchor.values)
    assert [text.get_text() for text in upper.figure.legends[0].get_texts()] == ["mean", "training inputs"]
    with pytest.raises(OptionError, match="trajectory must be an index from 0 to 1, got 2"):
        plot.profile(sensitivity, trajectory=2)


def test_what_a_profile_lacks_is_said_in_its_panel(sensitivity: xr.Dataset) -> None:
    ds = sensitivity.copy(deep=True)
    ds.transition_density.values[:] = np.nan
    ds.transition_density_status.values[:] = "undefined: a sigmoid has no $code$"
    (text,) = plot.profile(ds).axes[1].texts
    assert text.get_text() == r"undefined: a sigmoid has no \$code\$"


def test_boundaries_lie_where_neighbors_differ(sensitivity: xr.Dataset) -> None:
    one = sensitivity.sel(model="first")
    numbers, x, y = (one[name].values for name in ("region_grid", "region_grid_x", "region_grid_y"))
    ax = plot.regions(sensitivity).axes[0]
    expected = set()
    for row in range(12):
        for column in range(12):
            for down, right in ((0, 1), (1, 0)):
                if (
                    row + down < 12
                    and column + right < 12
                    and numbers[row, column] != numbers[row + down, column + right]
                ):
                    middle = (x[column] + x[column + right]) / 2, (y[row] + y[row + down]) / 2
                    expected.add(tuple(np.round(middle, 6)))
    middles = {tuple(np.round(segment.mean(0), 6)) for segment in ax.collections[0].get_segments()}
    assert middles == expected
    assert len(boundaries(numbers, x, y)) == len(expected)
    np.testing.assert_array_equal(ax.collections[1].get_offsets(), one.region_grid_corner.values)
    assert ax.get_title().startswith(f"{len(np.unique(numbers))} regions on a grid of 12 × 12")
    colors = np.asarray(ax.images[0].get_array()).reshape(-1, 4)
    for number in np.unique(numbers):
        assert len(np.unique(colors[numbers.ravel() == number], axis=0)) == 1
    assert len(np.unique(colors, axis=0)) > 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (plot.ablation, r"'ablation_none', which the measure cumulative_ablation of the plugin genmeasures-ars writes: "
         r"genmeasures run measure=\[cumulative_ablation\]"),
        (plot.images, r"'ars_image'.* measure=\[ars\] measure.ars.keep_images=true"),
        (plot.bounds, r"'jacobian_norm_sample_loss'.*genmeasures-jacobian"),
        (plot.profile, r"'trajectory_position'.*genmeasures-transitions"),
        (plot.regions, r"'region_grid'.*measure=\[region_count\]"),
    ],
)  # fmt: skip
def test_a_result_without_the_variables(draw: Any, message: str) -> None:
    ds = xr.Dataset(coords={"model": ["net"]})
    with pytest.raises(ResultError, match=message):
        draw(ds)
    with pytest.raises(OptionError, match=r"the result has no model 'nett' \(did you mean 'net'\? known: net\)"):
        draw(ds, "nett")


def test_a_renamed_measure_is_found_by_its_name(sensitivity: xr.Dataset, data: Data) -> None:
    model = {"first": network(0)}
    ds = genmeasures.measure(model, data, data, measures={"jn": JacobianNorm(), "rc": RegionCount(1, 4)})
    renamed = plot.bounds(ds, measure="jn").axes[0].collections[0].get_offsets()
    np.testing.assert_array_equal(renamed, plot.bounds(sensitivity).axes[0].collections[0].get_offsets())
    assert plot.regions(ds, measure="rc").axes[0].get_title().endswith("4 × 4")
    with pytest.raises(ResultError, match=r"renamed measures have it: jn; set --measure\)"):
        plot.bounds(ds)
    # The variable rc_linear_region_grid ends like one of a measure "rc_linear".
    with pytest.raises(ResultError, match=r"'other_region_grid'.*renamed measures have it: rc; set --measure\)"):
        plot.regions(ds, measure="other")


@pytest.mark.parametrize(
    ("draw", "variable"), [(plot.regions, "region_grid"), (plot.bounds, "jacobian_norm_sample_loss")]
)
def test_a_measure_that_is_not_renamed_needs_no_name(draw: Any, variable: str, sensitivity: xr.Dataset) -> None:
    found = rf"^the result has no variable 'other_\w+', but '{variable}' of the measure .*: leave out --measure$"
    with pytest.raises(ResultError, match=found):
        draw(sensitivity, measure="other")


def test_a_model_that_failed_and_a_value_that_is_missing(sensitivity: xr.Dataset) -> None:
    ds = sensitivity.copy(deep=True)
    ds.model_status.values[0] = "failed: no file"
    with pytest.raises(ResultError, match="the model 'first' has no values: failed: no file"):
        plot.profile(ds)
    ds.region_grid.values[1] = np.nan
    ds.region_grid_status.values[1] = "undefined: not computed"
    with pytest.raises(ResultError, match="region_grid of the model 'second' has no value: undefined: not computed"):
        plot.regions(ds, "second")


def test_names_are_no_math(kernels: xr.Dataset, tmp_path: Path) -> None:
    ds = kernels.assign_coords(model=["a$_$b\n", "second"])
    figure = plot.ablation(ds)
    assert figure.get_suptitle() == r"a\$_\$b\n"
    write_figure(figure, tmp_path / "figure.png")


@pytest.mark.parametrize("form", ["png", "pdf", "svg", "PNG"])
def test_the_same_figure_is_the_same_file(form: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        figure = new_figure(2, 2)
        figure.subplots().plot([1, 2], label="line")
        write_figure(figure, tmp_path / f"{name}.{form}")
    assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"other.{form}").read_bytes()


def test_other_formats_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"no format \.jpg \(.*known: pdf, png, svg\)"):
        write_figure(new_figure(2, 2), tmp_path / "figure.jpg")
    with pytest.raises(ResultError, match=r"cannot write the figure .*No such file"):
        write_figure(new_figure(2, 2), tmp_path / "no" / "figure.png")
