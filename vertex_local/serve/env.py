"""Print the variables that point clients to the service on this machine.

    eval "$(python -m vertex_local env)"

--python prints the statements that configure the Python SDK instead; --wait waits until the service is ready.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .. import cli
from . import endpoint


def main(argv: Sequence[str]) -> int:
    """Print the lines and return the exit code: 1 if no service runs."""
    parser = cli.Parser(prog="python -m vertex_local env", description=__doc__)
    parser.add_argument("--state_dir", metavar="DIR", default=".vertex_local", help="the service's folder (default: %(default)s)")
    parser.add_argument("--wait", metavar="SECONDS", type=cli.whole(0), default=0, help="wait so long for the service to be ready")
    parser.add_argument("--python", action="store_true", help="print Python statements for the SDK instead")
    args = parser.parse_args(argv)
    try:
        found = endpoint.find(args.state_dir, args.wait)
    except endpoint.EndpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(found.snippet() if args.python else found.exports())
    return 0
