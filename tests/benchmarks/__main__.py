"""`make bench`: every claim about speed and size as a ratio, measured in one run. Names of suites may be given."""

import sys
from importlib import import_module

from tests.benchmarks.measure import show

SUITES = {"calls": "One call", "fleet": "A fleet over SSH", "engine": "A Docker Engine"}


def main() -> None:
    for name in sys.argv[1:] or SUITES:
        show(SUITES[name], import_module(f"tests.benchmarks.{name}").rows())


if __name__ == "__main__":
    main()
