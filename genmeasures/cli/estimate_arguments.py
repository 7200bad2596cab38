"""Arguments of ``genmeasures estimate`` and ``genmeasures rank``, without an import of anything heavy."""

from __future__ import annotations

from typing import Any

METHODS = ("validation", "ac", "doc", "atc", "atc_entropy", "im", "cot", "gde", "ensemble", "aline")
"""Names of :data:`genmeasures.estimates.METHODS`."""


def add_estimate_parsers(commands: Any) -> None:
    """Add both commands to the command line.

    Args:
        commands: the subparsers of the command line.

    Example:
        >>> import argparse
        >>> parser = argparse.ArgumentParser()
        >>> add_estimate_parsers(parser.add_subparsers())
        >>> parser.parse_args(["estimate", "logits", "--method", "doc", "atc"]).method
        ['doc', 'atc']
    """
    estimate = commands.add_parser(
        "estimate",
        help="estimate accuracies on data without labels, from stored logits",
        usage="genmeasures estimate FILE.npz … [options]",
        description="Estimate the accuracy, or Dice coefficients, of models on data without labels. Each model is an "
        ".npz file with the arrays validation_logits (N, K) or (N, K, *spatial), validation_labels, target_logits and, "
        "to compare, target_labels.",
    )
    estimate.add_argument("logits", nargs="+", metavar="PATH", help=".npz file of a model, or a folder of them")
    estimate.add_argument(
        "--method", nargs="+", default=["validation", "atc"], metavar="NAME",
        help=f"methods: {', '.join(METHODS)} (default: validation atc)",
    )  # fmt: skip
    estimate.add_argument("--metric", help="accuracy or dice (default: dice for an output per pixel)")
    estimate.add_argument("--scale", action="store_true", help="fit a temperature on the validation data")
    estimate.add_argument("--average", default="inputs", help="Dice coefficients over inputs (default) or pixels")
    estimate.add_argument(
        "--background", type=int, default=0, help="class left out of mean Dice; -1 for none (default: 0)"
    )
    estimate.add_argument("--confidence", type=float, default=0.95, help="level of the intervals (default: 0.95)")
    estimate.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    estimate.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    estimate.add_argument("--output", metavar="FILE.nc", help="file for the result, which genmeasures rank reads")
    rank = commands.add_parser(
        "rank",
        help="order models by estimates or measures, with the probability that each is the best",
        usage="genmeasures rank RESULT.nc [options]",
        description="Order the models of a result of genmeasures estimate, or of genmeasures run, with the probability "
        "that each is the best, and what the choice costs where accuracies are known.",
    )
    rank.add_argument("result", help="result file")
    rank.add_argument(
        "--by", nargs="+", metavar="NAME",
        help="estimates, or measures; +NAME for larger is better and ~NAME for smaller is better "
        "(default: all estimates, or all measures whose source states a direction)",
    )  # fmt: skip
    rank.add_argument("--against", metavar="NAME", help="known metric, such as test_accuracy")
    rank.add_argument(
        "--aggregator", nargs="+", default=["frobenius"], metavar=("NAME", "OPTION=VALUE"),
        help="how layers are reduced to one number (default: frobenius)",
    )  # fmt: skip
    rank.add_argument("--seed", type=int, default=0, help="seed of draws from standard errors (default: 0)")
    for command in (estimate, rank):
        command.add_argument("--json", action="store_true", help="print JSON")


__all__ = ["METHODS", "add_estimate_parsers"]
