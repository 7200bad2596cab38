"""Entry point of the command ``genmeasures``, which answers ``--help`` without importing torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from genmeasures.cli.estimate_arguments import add_estimate_parsers
from genmeasures.cli.interrupts import interruptible
from genmeasures.cli.plot_arguments import add_plot_parser
from genmeasures.errors import nearest
from genmeasures.version import __version__

_RUN = """\
genmeasures run [hydra overrides] [-m]

Measure the models of a task, judge the measures, and save the result.

  genmeasures run                                   the digits task with its defaults
  genmeasures run task=checkpoints task.path=nets/  your own checkpoints
  genmeasures run measure=[roughness] seed=1        selected measures, another seed
  genmeasures run extractor=receptive_field,whole_tensor -m     one run for each; -m may be anywhere
  genmeasures run layers=[0,-1]                     the first and the last layer, by index or by name
  genmeasures run layers=-3:                        the last three layers of each model
  genmeasures run --cfg job                         show the whole configuration
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after ``genmeasures``; None takes those of the process.

    Returns:
        The exit status.

    Example:
        >>> main(["plugins", "no_such_component"])
        1
    """
    return interruptible(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of the command line, and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="genmeasures",
        description="Generalization measures of trained networks, layer by layer.",
        epilog="'genmeasures COMMAND --help' describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"genmeasures {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run", help="measure the models of a task", description=_RUN, add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    run.add_argument("overrides", nargs=argparse.REMAINDER)
    collect = commands.add_parser(
        "collect", help="merge result files and compare runs", usage="genmeasures collect FOLDER [options]",
        description="Merge result files, list their runs with the settings that differ, and compare the runs in one "
        "table: run × measure, with mean and standard deviation over seeds.",
    )  # fmt: skip
    collect.add_argument("folder", help="folder with result files")
    collect.add_argument("--output", help="folder for the merged files (default: FOLDER/collected)")
    collect.add_argument(
        "--aggregator", nargs="+", default=["frobenius"], metavar=("NAME", "OPTION=VALUE"),
        help="how layers are reduced to one number, such as last_k k=2 (default: frobenius)",
    )  # fmt: skip
    collect.add_argument(
        "--against", action="append", metavar="NAME",
        help="metric that measures are judged against, such as test_accuracy; may be repeated",
    )  # fmt: skip
    add_estimate_parsers(commands)
    add_plot_parser(commands)
    plugins = commands.add_parser("plugins", help="list the installed plugins, or show one component or plugin")
    plugins.add_argument(
        "name",
        nargs="?",
        help="component, NAME or KIND.NAME, to show with its options, defaults and docstring, or a plugin to list",
    )
    for command in (collect, plugins):
        command.add_argument("--json", action="store_true", help="print JSON")
    check = commands.add_parser("check", help="run the conformance suite on a component")
    check.add_argument("name", help="name of an extractor, labeler, measure or aggregator, KIND.NAME, or FILE.py:CLASS")
    check.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="options of the component")
    new = commands.add_parser("new-plugin", help="create a plugin: module, pyproject.toml and test")
    new.add_argument("name", help="name of its measure, such as my_measure")
    new.add_argument(
        "--kind", choices=("feature", "output"), default="feature",
        help="what the measure reads: the features of layers (default) or the outputs of models",
    )  # fmt: skip
    new.add_argument("--folder", default=".", help="folder in which it is created (default: current folder)")
    return parser, list(commands.choices)


def _main(arguments: list[str]) -> int:
    parser, commands = _parser()
    if arguments[:1] in (["-m"], ["--multirun"]) and arguments[1:2] == ["run"]:
        arguments = ["run", "-m", *arguments[2:]]
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        print(f"error: {_no_command(arguments, commands)}", file=sys.stderr)
        return 2
    if arguments[:1] == ["run"]:
        if {"--help", "-h"} & {*arguments[1:]}:
            print(_RUN, end="")
            return 0
        if "--version" in arguments[1:]:  # Hydra would print its own
            print(f"genmeasures {__version__}")
            return 0
        from genmeasures.cli.run import run_command

        return run_command(arguments[1:])
    parsed, others = parser.parse_known_args(arguments)
    if others and (others[0].startswith("-") or not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:  # overrides after an option
        parsed.overrides += others
    return _dispatch(parsed)


def _dispatch(parsed: argparse.Namespace) -> int:
    """Run a command; errors of genmeasures become one line."""
    from genmeasures.errors import GenmeasuresError
    from genmeasures.failures import debugging

    try:
        if parsed.command == "collect":
            from genmeasures.cli.collect import collect_command

            return collect_command(parsed.folder, parsed.output, parsed.json, parsed.aggregator, parsed.against)
        if parsed.command in ("estimate", "rank"):
            from genmeasures.cli.estimate import estimate_command, rank_command

            return (estimate_command if parsed.command == "estimate" else rank_command)(parsed)
        if parsed.command == "plot":
            from genmeasures.cli.plot import plot_command

            return plot_command(parsed)
        if parsed.command == "check":
            from genmeasures.cli.check import check_command

            return check_command(parsed.name, parsed.options)
        if parsed.command == "new-plugin":
            from genmeasures.cli.new_plugin import new_plugin_command

            return new_plugin_command(parsed.name, parsed.folder, parsed.kind)
        from genmeasures.cli.plugins import plugins_command

        return plugins_command(parsed.json, parsed.name)
    except GenmeasuresError as error:
        if debugging():
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _no_command(arguments: Sequence[str], commands: Sequence[str]) -> str:
    if "=" in arguments[0]:
        return f"settings follow a command: genmeasures run {' '.join(arguments)}"
    return f"there is no command {arguments[0]!r}{nearest(arguments[0], commands)}"


if __name__ == "__main__":
    sys.exit(main())
