#!/usr/bin/env python3
"""Make the pictures of the documents anew.

    .venv/bin/pip install '.[pictures,serve]' -r requirements-dev.txt
    .venv/bin/python docs/pictures/make.py how        # the drawings of docs/how-it-works.md: no run, no browser
    .venv/bin/python docs/pictures/make.py resume     # three runs of taxifare, two of them killed: some minutes
    .venv/bin/python docs/pictures/make.py console    # a job, a study, a pipeline: some minutes; Chromium, scripts/setup_kfp

Without a name it makes all of them. `resume` keeps what it measured in resume.json; `resume --redraw` draws that again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
for path in (ROOT, HERE):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

from vertex_local.errors import UserError  # noqa: E402

KINDS = ("how", "resume", "console")
REMEDY = ". Install what pictures need: pip install '.[pictures,serve]' -r requirements-dev.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pictures that are asked for and return the exit code: 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"which ones: {', '.join(KINDS)} (default: all)")
    parser.add_argument("--to", type=Path, default=HERE, help="folder for the pictures (default: this one)")
    parser.add_argument("--redraw", action="store_true", help="draw the timeline of resume.json again, without a run")
    args = parser.parse_args(argv)
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        parser.error(f"there are no pictures of the kind {unknown[0]!r}; kinds are {', '.join(KINDS)}.")
    if not args.to.is_dir():
        parser.error(f"--to: there is no folder {args.to}.")
    try:
        for kind in args.kinds or KINDS:
            _make(kind, args)
    except (UserError, ImportError) as error:
        print(f"error: {error}{REMEDY if isinstance(error, ImportError) else ''}", file=sys.stderr)
        return 2
    return 0


def _make(kind: str, args: argparse.Namespace) -> None:
    if kind == "console":
        import console

        console.make(args.to)
    elif kind == "resume":
        _resume(args.to, args.redraw)
    else:
        import how

        for name, draw in how.PICTURES.items():
            (args.to / f"how-{name}.svg").write_text(draw().svg(), encoding="utf-8")


def _resume(to: Path, redraw: bool) -> None:
    import resume

    kept = to / "resume.json"
    if redraw and not kept.is_file():
        raise UserError(f"--redraw: there is no {kept}. Leave --redraw out to measure it.")
    if not redraw:
        with tempfile.TemporaryDirectory() as folder:
            record = resume.measure(ROOT, Path(folder))
        kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (to / "resume.svg").write_text(resume.draw(json.loads(kept.read_text(encoding="utf-8"))).svg(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
