"""``python -m edgeseg`` and the ``edgeseg`` command."""

from __future__ import annotations

import importlib.util
import sys

from .cli.stdio import mend_streams


def main() -> None:
    """Run the command line; say how to install it where click is missing."""
    mend_streams()
    if importlib.util.find_spec("click") is None:
        print(
            "edgeseg: E-EXTRA-MISSING: the command line needs click; pip install 'edgeseg[cli]'",
            file=sys.stderr,
        )
        sys.exit(4)
    from .cli.main import cli

    cli(prog_name="edgeseg")


if __name__ == "__main__":
    main()
