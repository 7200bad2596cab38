"""``python -m genmeasures`` is the command ``genmeasures``."""

import sys

from genmeasures.cli.main import main

if __name__ == "__main__":  # processes that a multirun starts import this file too
    sys.exit(main())
