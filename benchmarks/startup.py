"""How soon the taxifare trainer answers: `--help`, a mistyped flag, the first finished step; and what it imports."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from processes import Spread, print_table, run, trainer

IMPORT = "import time, tensorflow; print(); print(time.time())"
GOOGLE = re.compile(r"import time:.*\|\s+(google\.(?!protobuf|_upb)[\w.]+)\s*$", re.MULTILINE)


def measure_startup(folder: Path, repeats: int) -> dict[str, Any]:
    """Print a table; return every measurement. The trainer runs on its own sample data with default flags."""
    kinds = ("--help", "argument error", "import tensorflow", "first step", "whole run")
    found: dict[str, list[float]] = {name: [] for name in kinds}
    output = folder / "startup"
    logs = folder / "logs"
    for _ in range(repeats):
        found["--help"].append(run(trainer("taxifare", "--help"), logs).seconds)
        wrong = run(trainer("taxifare", "--batchsize", 5), logs, check=False)
        if not 0 < wrong.code < 128:
            raise SystemExit(f"a mistyped flag ended with {wrong.code}: {wrong.output}")
        found["argument error"].append(wrong.seconds)
        bare = run([sys.executable, "-c", IMPORT], logs)
        found["import tensorflow"].append(bare.last_line() - bare.start)
        shutil.rmtree(output, ignore_errors=True)
        finished = run(trainer("taxifare", "--output_dir", output), logs)
        found["first step"].append(finished.until("step"))
        found["whole run"].append(finished.until("end"))
    table = [(name, f"{Spread(found[name]):.3f}", "under 0.5" if name in kinds[:2] else "") for name in kinds]
    beyond = Spread([step - bare for step, bare in zip(found["first step"], found["import tensorflow"])])
    table.append(("first step beyond the import", f"{beyond:.2f}", "at most 1.0"))
    shutil.rmtree(output, ignore_errors=True)
    clients = google_clients(folder)
    table.append(("Google modules imported", ", ".join(clients) or "none", "none"))
    print_table(f"Start-up on the sample data, seconds, median [range] of {repeats}", ("what", "seconds", "goal"), table)
    return {**found, "google_modules": clients}


def google_clients(folder: Path) -> list[str]:
    """Return the modules under `google.` that a run imports, TensorFlow's own `google.protobuf` apart."""
    output = folder / "imports"
    shutil.rmtree(output, ignore_errors=True)
    python, *words = trainer("taxifare", "--output_dir", output, "--num_examples_to_train_on", 2000)
    text = run([python, "-X", "importtime", *words], folder / "logs").output
    shutil.rmtree(output)
    return sorted({match[1] for match in GOOGLE.finditer(text)})
