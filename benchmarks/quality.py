#!/usr/bin/env python3
"""How well both trainers learn from the real data, beside scikit-learn's models in the same run.

The trainers run as their users start them, with default flags. About five minutes:

    python benchmarks/quality.py --json quality.json
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from processes import Run, Spread, keep, machine, mean_and_range, print_table, real_files, run, trainer

SPLITS = (0, 1, 2)
LAB = ("--features=lab", "--nbuckets", 10, "--nnsize", "32 8", "--lr", 0.001, "--batch_size", 32, "--epochs", 10)
Scores = dict[str, list[float]]


def training_seconds(finished: Run) -> float:
    """Return the seconds from the first look at the data (reading, tokenising) to the last finished step."""
    data = next(event["time"] for event in finished.events if event["phase"] == "data")
    return max(event["time"] for event in finished.events if event["phase"] in ("step", "evaluation")) - data


def train(name: str, folder: Path, metric: str, scores: Scores, *flags: object) -> None:
    """Train once in a fresh directory; append the validation's and the test's metric and the seconds to `scores`."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    finished = run(trainer(name, "--output_dir", output, *flags), folder / "logs")
    metrics = json.loads((output / "metrics.json").read_text())
    add(scores, metrics[f"val_{metric}"], metrics.get(f"test_{metric}"), training_seconds(finished))
    print(f"  {name} {' '.join(map(str, flags[4:]))}: {metric} {metrics[f'val_{metric}']:.4f}", file=sys.stderr)


def add(scores: Scores, valid: float, test: float | None, seconds: float) -> None:
    for name, value in (("valid", valid), ("test", math.nan if test is None else test), ("seconds", seconds)):
        scores.setdefault(name, []).append(value)


# ------------------------------------------------------------------------------------ taxifare


def taxifare(train_file: Path, valid: Path, test: Path | None, seeds: Sequence[int], folder: Path, lab: bool) -> dict[str, Scores]:
    """Print the table of fares' errors; return every score."""
    found: dict[str, Scores] = {"taxifare, defaults": {}}
    paths = ("--train_data_path", train_file, "--eval_data_path", valid, *(("--test_data_path", test) if test else ()))
    for seed in seeds:
        train("taxifare", folder, "rmse", found["taxifare, defaults"], *paths, "--seed", seed)
        if lab:
            train("taxifare", folder, "rmse", found.setdefault("taxifare --features=lab", {}), *paths, "--seed", seed, *LAB)
        boosted_trees(train_file, valid, test, seed, found.setdefault("scikit-learn boosted trees", {}))
    table = []
    for name, scores in found.items():
        goal = "mean at most 3.50, none above 3.60" if name == "taxifare, defaults" else ""
        table.append((*summary(name, scores, 3), goal))
    header = ("model", "validation RMSE, mean [min..max]", "test RMSE, mean [min..max]", "seconds", "goal")
    print_table(f"taxifare: trained on {train_file.name}, {len(seeds)} seeds", header, table)
    return found


def summary(name: str, scores: Scores, digits: int) -> tuple[str, str, str, str]:
    """Return a row of the table: the model, the metric on both sets of rows, seconds."""
    valid, test = (
        "not given" if any(map(math.isnan, scores[column])) else mean_and_range(scores[column], digits) for column in ("valid", "test")
    )
    return name, valid, test, f"{Spread(scores['seconds']):.1f}"


def boosted_trees(train_file: Path, valid: Path, test: Path | None, seed: int, scores: Scores) -> None:
    """Score scikit-learn's gradient boosting, its own defaults, on ten simple features."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor

    start = time.perf_counter()
    features, fares = trips(train_file)
    model = HistGradientBoostingRegressor(random_state=seed).fit(features, fares)
    seconds = time.perf_counter() - start

    def rmse(path: Path) -> float:
        features, fares = trips(path)
        return float(np.sqrt(np.mean((model.predict(features) - fares) ** 2)))

    add(scores, rmse(valid), rmse(test) if test else None, seconds)


def trips(path: Path) -> tuple[Any, Any]:
    """Return ten features of each trip and the fares."""
    import numpy as np

    features, fares = [], []
    with open(path, newline="") as file:
        for fare, stamp, *numbers in csv.reader(file):
            if fare == "fare_amount":
                continue
            when = datetime.strptime(stamp[:19], "%Y-%m-%d %H:%M:%S")
            east, north, to_east, to_north, passengers = map(float, numbers[:5])
            dx, dy = (to_east - east) * 84.3, (to_north - north) * 111.2
            features.append(
                [east, north, to_east, to_north, math.hypot(dx, dy), abs(dx) + abs(dy), when.hour, when.weekday(),
                 when.year + when.month / 12, passengers]
            )  # fmt: skip
            fares.append(float(fare))
    return np.array(features), np.array(fares)


# --------------------------------------------------------------------------------------- text


def stackoverflow(titles: Path, test: Path | None, folder: Path, cnn: bool) -> dict[str, Scores]:
    """Print the table of titles' accuracies; return every score."""
    found: dict[str, Scores] = {"stackoverflow, defaults": {}}
    for split in SPLITS:
        parts = write_split(titles, split, folder)
        paths = ("--train_data_path", parts[0], "--eval_data_path", parts[1], *(("--test_data_path", test) if test else ()))
        train("stackoverflow", folder, "accuracy", found["stackoverflow, defaults"], *paths)
        if cnn:
            train("stackoverflow", folder, "accuracy", found.setdefault("stackoverflow --model=cnn", {}), *paths, "--model=cnn")
        for name, vectorizer, cost in anchors():
            svm(vectorizer(), cost, parts, test, found.setdefault(name, {}))
    word = found["words, TF-IDF + LinearSVC"]["valid"]
    lead = sum(found["stackoverflow, defaults"]["valid"]) / len(SPLITS) - sum(word) / len(SPLITS)
    table = []
    for name, scores in found.items():
        goal = "at least 0.915, 0.010 above words, 6 s" if name == "stackoverflow, defaults" else ""
        table.append((*summary(name, scores, 4), goal))
    header = ("model", "accuracy, mean [min..max]", "test accuracy", "seconds with tokenising", "goal")
    print_table(f"stackoverflow: {titles.name}, {len(SPLITS)} stratified splits, 20 % held out", header, table)
    print(f"\nlead over words, TF-IDF + LinearSVC: {lead:+.4f}")
    return found


def anchors() -> list[tuple[str, Callable[[], Any], float]]:
    """Return scikit-learn's models: name, vectoriser, cost of the SVM."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    def characters() -> TfidfVectorizer:
        return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)

    return [("words, TF-IDF + LinearSVC", TfidfVectorizer, 1.0), ("char_wb(3, 5), TF-IDF + LinearSVC", characters, 0.3)]


def svm(vectorizer: Any, cost: float, parts: Sequence[Path], test: Path | None, scores: Scores) -> None:
    from sklearn.svm import LinearSVC

    start = time.perf_counter()
    texts, labels = read_titles(parts[0])
    model = LinearSVC(C=cost, random_state=0).fit(vectorizer.fit_transform(texts), labels)
    seconds = time.perf_counter() - start

    def accuracy(path: Path) -> float:
        texts, labels = read_titles(path)
        return float(model.score(vectorizer.transform(texts), labels))

    add(scores, accuracy(parts[1]), accuracy(test) if test else None, seconds)


def read_titles(path: Path) -> tuple[list[str], list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def write_split(titles: Path, number: int, folder: Path) -> tuple[Path, Path]:
    """Write a stratified split of the titles, 80 % and 20 %; return both files."""
    from sklearn.model_selection import StratifiedShuffleSplit

    texts, labels = read_titles(titles)
    parts = next(StratifiedShuffleSplit(1, test_size=0.2, random_state=number).split(texts, labels))
    paths = (folder / f"train-{number}.csv", folder / f"valid-{number}.csv")
    for path, rows in zip(paths, parts):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows((texts[i], labels[i]) for i in rows)
    return paths


def main() -> None:
    """Measure both trainers, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with taxifare/ and stackoverflow/; SHARED_DATA or ../shared/data if not given")
    parser.add_argument("--only", choices=("taxifare", "stackoverflow"), help="leave the other one out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--no_lab", action="store_true", help="leave the lab's network out")
    parser.add_argument("--cnn", action="store_true", help="train --model=cnn as well")
    parser.add_argument("--taxi_test", type=Path, help="further trips that no model has seen")
    parser.add_argument("--text_test", type=Path, help="further titles that no model has seen")
    parser.add_argument("--json", type=Path, help="write every score to this file")
    args = parser.parse_args()
    tests = [path and path.resolve() for path in (args.taxi_test, args.text_test)]
    for flag, path in zip(("--taxi_test", "--text_test"), tests):
        if path and not path.exists():
            parser.error(f"{flag}: {path} does not exist. Name a file of rows.")
    *fares, titles = real_files(args.data, "taxifare/taxi-train.csv", "taxifare/taxi-valid.csv", "stackoverflow/titles.csv")
    results: dict[str, Any] = {"machine": machine()}
    print(f"machine: {results['machine']}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.only != "stackoverflow":
            results["taxifare"] = taxifare(*fares, tests[0], args.seeds, folder, not args.no_lab)
        if args.only != "taxifare":
            results["stackoverflow"] = stackoverflow(titles, tests[1], folder, args.cnn)
    keep(args.json, results)


if __name__ == "__main__":
    main()
