"""Entry point of the command ``genmeasures``. Answers ``--help`` without importing torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from genmeasures.cli.interrupts import interruptible
from genmeasures.errors import nearest
from genmeasures.version import __version__

_RUN = """\
genmeasures run [hydra overrides] [-m]

Measure the models of a task, judge the measures, and keep the result.

  genmeasures run                                   the digits task with its defaults
  genmeasures run task=checkpoints task.path=nets/  your own checkpoints
  genmeasures run measure=[roughness] seed=1        some measures, another seed
  genmeasures run extractor=receptive_field,whole_tensor -m     one run for each; -m may stand anywhere
  genmeasures run layers=[0,-1]                     the first and the last layer; names work too
  genmeasures run --cfg job                         show the whole configuration
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return interruptible(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="genmeasures",
        description="Generalization measures of trained networks, layer by layer.",
        epilog="'genmeasures COMMAND --help' tells more of each.",
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
        description="Merge result files, list the runs that they are of with what differs, and compare these in one "
        "table: run × measure, with mean and standard deviation over seeds.",
    )  # fmt: skip
    collect.add_argument("folder", help="folder with result files")
    collect.add_argument("--output", help="folder for the merged files (default: FOLDER/collected)")
    collect.add_argument(
        "--aggregator", nargs="+", default=["frobenius"], metavar=("NAME", "OPTION=VALUE"),
        help="how layers are reduced to one number (default: frobenius); last_k k=2 for one",
    )  # fmt: skip
    collect.add_argument(
        "--against", action="append", metavar="NAME",
        help="what measures are judged against, test_accuracy for one; may be given several times",
    )  # fmt: skip
    plugins = commands.add_parser("plugins", help="show the installed plugins and what they provide")
    for command in (collect, plugins):
        command.add_argument("--json", action="store_true", help="print JSON for machines")
    check = commands.add_parser("check", help="run the conformance suite on a component")
    check.add_argument("name", help="name of an extractor, labeler, measure or aggregator, KIND.NAME, or FILE.py:CLASS")
    check.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="options to make it with")
    new = commands.add_parser("new-plugin", help="make a working plugin: package, config, test")
    new.add_argument("name", help="name of its measure, my_measure for one")
    new.add_argument("--folder", default=".", help="where to make it (default: here)")
    if given[:1] in (["-m"], ["--multirun"]) and given[1:2] == ["run"]:
        given = ["run", "-m", *given[2:]]
    if not given:
        parser.print_help(sys.stderr)
        return 2
    if not given[0].startswith("-") and given[0] not in commands.choices:
        print(f"error: {_no_command(given, list(commands.choices))}", file=sys.stderr)
        return 2
    if given[:1] == ["run"]:
        if {"--help", "-h"} & {*given[1:]}:
            print(_RUN, end="")
            return 0
        if "--version" in given[1:]:  # Hydra would give its own
            print(f"genmeasures {__version__}")
            return 0
        from genmeasures.cli.run import run_command

        return run_command(given[1:])
    parsed = parser.parse_args(given)
    from genmeasures.errors import GenmeasuresError
    from genmeasures.failures import debugging

    try:
        if parsed.command == "collect":
            from genmeasures.cli.collect import collect_command

            return collect_command(parsed.folder, parsed.output, parsed.json, parsed.aggregator, parsed.against)
        if parsed.command == "check":
            from genmeasures.cli.check import check_command

            return check_command(parsed.name, parsed.options)
        if parsed.command == "new-plugin":
            from genmeasures.cli.new_plugin import new_plugin_command

            return new_plugin_command(parsed.name, parsed.folder)
        from genmeasures.cli.plugins import plugins_command

        return plugins_command(parsed.json)
    except GenmeasuresError as error:
        if debugging():
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _no_command(given: Sequence[str], known: Sequence[str]) -> str:
    if "=" in given[0]:
        return f"settings follow a command: genmeasures run {' '.join(given)}"
    return f"there is no command {given[0]!r}{nearest(given[0], known)}"


if __name__ == "__main__":
    sys.exit(main())
