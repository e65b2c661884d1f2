"""Print an address that opens the console of the service that runs on this machine, in one browser.

    python -m vertex_local console

The browser asks once whether to trust the service's own certificate.
"""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence

from .. import cli
from ..serve import endpoint


def main(argv: Sequence[str]) -> int:
    """Print the address and return the exit code: 1 if no service runs."""
    parser = cli.Parser(prog="python -m vertex_local console", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state_dir", metavar="DIR", default=".vertex_local", help="the service's folder (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open it in the default browser, too")
    args = parser.parse_args(argv)
    try:
        address = endpoint.find(args.state_dir).console_address()
    except endpoint.EndpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(address)
    if args.open:
        webbrowser.open(address)
    return 0
