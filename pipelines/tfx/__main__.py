"""Run the TFX pipeline on this machine, or compile it for the cloud: python -m pipelines.tfx --trainer stackoverflow --threshold 0.9"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vertex_runtime.errors import UserError, run_as_program

from . import environment


def main(argv: Sequence[str] | None = None) -> None:
    """Run or compile, in the environment that has TFX.

    Raises:
        UserError: anything that the user can mend.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    environment.go_on_with_tfx(words)
    from vertex_local.errors import UserError as LocalError

    from . import command

    try:
        command.main(words)
    except LocalError as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run_as_program(main)
