"""Arguments of ``genmeasures plot``, without an import of anything heavy."""

from __future__ import annotations

import argparse
from typing import Any

MODEL_KINDS = {
    "manifold": "pixels of layers in principal components, colored by label",
    "clusters": "clusters of a layer with their Gaussian mixtures",
}
"""Figures that are computed from a model and its training data."""
RESULT_KINDS = {
    "ablation": "accuracy as kernels are silenced (measure cumulative_ablation)",
    "bounds": "Jacobian norm of inputs against their cross-entropy, with its bounds (measure jacobian_norm)",
    "images": "inputs that activate kernels most (measure ars with keep_images)",
    "profile": "Jacobian norm and transitions along a trajectory (measure transition_count)",
    "regions": "activation regions in a plane of input space (measure region_count)",
}
"""Figures that are drawn from a result file."""


def add_plot_parser(commands: Any) -> None:
    """Add the command and its kinds of figures to the command line.

    Args:
        commands: the subparsers of the command line.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_plot_parser(parser.add_subparsers())
        >>> parser.parse_args(["plot", "ablation", "result.nc", "--layer", "conv1", "--layer", "-1"]).layer
        ['conv1', -1]
    """
    plot = commands.add_parser(
        "plot",
        help="draw a figure of one model",
        description="Draw a figure of one model.",
        epilog="'genmeasures plot KIND --help' describes a kind.",
    )
    kinds = plot.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, text in MODEL_KINDS.items():
        parser = kinds.add_parser(
            kind,
            help=text,
            usage=f"genmeasures plot {kind} [hydra overrides] [options]",
            description=f"Draw the {text}. The overrides choose task, extractor and seed as those of genmeasures run: "
            "task=checkpoints task.path=nets extractor.cap=20000.",
        )
        parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override of genmeasures run")
        _common(parser, f"{kind}.png in the current folder")
        if kind == "manifold":
            _layers(parser, "layer to draw (default: all)")
            parser.add_argument("--dimensions", type=int, choices=(2, 3), default=3, help="components (default: 3)")
        else:
            parser.add_argument("--layer", type=_layer, default=-1, help="name or index (default: the last layer)")
            for name, default, what in (
                ("k", [5], "numbers of clusters"),
                ("components", [10], "numbers of principal components"),
                ("mixtures", [3], "numbers of Gaussians per cluster, 0 for none"),
            ):
                shown = f"{what}, such as 3,5,10 (default: {default[0]})"
                parser.add_argument(f"--{name}", type=_numbers, default=default, metavar="N[,N…]", help=shown)
    for kind, text in RESULT_KINDS.items():
        parser = kinds.add_parser(
            kind, help=text, usage=f"genmeasures plot {kind} RESULT.nc [options]", description=f"Draw the {text}."
        )
        parser.add_argument("result", help="result file of genmeasures run")
        _common(parser, f"RESULT-{kind}.png beside the result")
        if kind == "ablation":
            _layers(parser, "layer to draw (default: all with a value)")
            _measure(parser, "cumulative_ablation")
        elif kind == "images":
            parser.add_argument("--layer", type=_layer, default=0, help="name or index (default: the first layer)")
            parser.add_argument(
                "--measure", action="append", metavar="NAME", help="name of ars in the result; may be repeated"
            )
            parser.add_argument("--kernels", type=int, default=64, help="maximum number of kernels (default: 64)")
        elif kind == "bounds":
            _measure(parser, "jacobian_norm")
        elif kind == "profile":
            parser.add_argument("--trajectory", type=int, default=0, metavar="N", help="index (default: 0)")
            _measure(parser, "transition_count")
        elif kind == "regions":
            _measure(parser, "region_count")


def _common(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--model", metavar="NAME", help="name of the model (default: the first)")
    parser.add_argument("--output", metavar="FILE", help=f"a .png, .pdf or .svg (default: {default})")


def _layers(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--layer", type=_layer, action="append", metavar="NAME", help=f"{text}; may be repeated")


def _measure(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--measure", default=name, metavar="NAME", help="name in the result, if it has been renamed")


def _layer(text: str) -> str | int:
    """A layer: an index if it is an integer, else a name."""
    try:
        return int(text)
    except ValueError:
        return text


def _numbers(text: str) -> list[int]:
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(int(part))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected integers separated by commas, got {part!r}") from None
    return numbers
