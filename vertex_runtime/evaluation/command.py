"""`scripts/evaluate`: find the trainer that a model is of, and let it evaluate the model.

scripts/evaluate taxifare-run-1/model rows.csv --output report                     # report/evaluation.html and .json
scripts/evaluate new/model 'rows-*.parquet' --against old/model --trainer taxifare
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

from ..environment import quoted, resolve_uri
from ..errors import UserError, run_as_program
from ..outputs import is_remote, read_text


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate an exported model on some data; what follows -- goes to the trainer as it is, such as --bad_rows=skip."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/evaluate", description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="the SavedModel's folder: OUTPUT_DIR/model, gs://…, /gcs/…")
    parser.add_argument("data", metavar="DATA", nargs="*", help="files, wildcards or folders (default: the trainer's sample data)")
    parser.add_argument("--against", metavar="MODEL2", help="another model, which is asked the same rows")
    parser.add_argument("--trainer", metavar="NAME", help="the trainer's package (default: as run.json beside the model says)")
    parser.add_argument("--output", metavar="DIR", default=".", help="where to write evaluation.json and evaluation.html (default: here)")
    words = list(sys.argv[1:] if argv is None else argv)
    own, rest = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = parser.parse_args(own)
    trainer = args.trainer or trainer_of(args.model)
    module = f"{trainer}.trainer.task"
    try:
        there = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        there = False
    if not there:
        where = "--trainer" if args.trainer else "run.json beside the model"
        raise UserError(f"{where} names the trainer {quoted(trainer)}, and {module} is not here. Give another by --trainer=NAME.")
    flags = [f"--evaluate={args.model}", f"--output_dir={args.output}"] + ([f"--against={args.against}"] if args.against else [])
    flags += ["--eval_data_path", *args.data] if args.data else []
    sys.argv = [module, *rest, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def trainer_of(model: str) -> str:
    """Return the trainer's package, as the records of the run say that left the model.

    Raises:
        UserError: they are not there, or do not say it.
    """
    folder = resolve_uri(model).rstrip("/")
    for path in (f"{os.path.dirname(folder) or '.'}/run.json", f"{folder}/run.json"):
        record = _read(path)
        if record is None:
            continue
        command = record.get("command") or [""]
        parts = os.path.normpath(str(command[0])).split(os.sep)
        named = record.get("trainer") or (parts[-3] if parts[-2:] == ["trainer", "task.py"] and len(parts) > 2 else None)
        if named:
            return str(named)
    raise UserError(f"{model}: no run.json beside it says which trainer it is of. Name it: --trainer=NAME.")


def _read(path: str) -> dict[str, Any] | None:
    if is_remote(path):
        from ..strategy import import_tensorflow

        import_tensorflow()  # quietly
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    run_as_program(main)
