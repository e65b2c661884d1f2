"""An evaluation while it goes on: chunk after chunk is asked, judged and kept; in the end, the figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import profile
from ..columns import Category, Date
from ..contract import Contract
from ..data import Chunk, UnknownLabel, concatenate, unseen
from ..data_report.sketches import RowSample
from ..errors import FAILED, UserError
from ..reporting import log
from ..rows import rows_of
from . import explaining
from . import metrics as measures
from .kept import Examples, Kept
from .paired import paired
from .problem import BINARY, MULTICLASS, MULTILABEL, OTHER, REGRESSION, Judged, Labels, Problem, gives_logits, judge, understand
from .served import Outputs, Served
from .slices import bucketings, changes, slices_of

SCORE_ROWS = 100_000  # whose answers are kept for the trainer's own `score`
USUAL = {
    REGRESSION: ("rmse", False), OTHER: ("rmse", False), BINARY: ("auc", True), MULTICLASS: ("accuracy", True),
    MULTILABEL: ("micro_f1", True),
}  # fmt: skip


class Judging:
    """Takes raw rows in, and knows in the end what the model is worth on them."""

    def __init__(self, contract: Contract, hp: Any, served: Served, other: Served | None, files: Sequence[str]):
        self.contract, self.hp, self.served, self.other, self.files = contract, hp, served, other, list(files)
        self.classes = {label: served.class_names(label) or _values_of(contract, label) for label in contract.labels}
        self.labels = Labels(contract, hp, self.classes)
        self.problem: Problem | None = None
        self.logits = self.other_logits = False
        self.order: np.ndarray | None = None  # the problem's classes among the other model's
        self.kept, self.examples, self.sums = Kept(contract.columns, hp.seed), Examples(), [measures.Sums(), measures.Sums()]
        self.profile = profile.Profile(contract.columns, contract.labels, hp.seed)
        self.drawn = RowSample(hp.seed, explaining.rows_for(served))  # raw rows to explain
        self.scored: list[tuple[Outputs, Any]] | None = [] if "score" in contract.given else None

    def add(self, chunk: Chunk) -> None:
        """Ask, judge and keep some rows.

        Raises:
            UserError: the model refuses them, or a label is none of its classes.
        """
        outputs = self.served.answer(chunk)
        if self.problem is None:
            self._begin(chunk, outputs)
        judged = self._judged(chunk, outputs, self.logits, None)
        self._keep_for_score(chunk, outputs, judged)
        kept = dict(judged)
        if self.other is not None:
            answers = self.other.answer(chunk)
            theirs = self._judged(chunk, answers, self.other_logits, self.order)
            kept |= {f"other {name}": values for name, values in theirs.items()}
            self.sums[1].add(theirs)
        self.sums[0].add(judged)
        self.profile.add(chunk)
        self.drawn.offer(rows_of(chunk), lambda taken: {name: chunk[name][taken] for name in self.served.specs})
        self.kept.add({**chunk, **self._derived(chunk)}, kept)
        self.examples.add(self._ranks(judged), chunk, judged)

    def _derived(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Return the quantities that the trainer offers to look at errors by, [rows] each."""
        found = self.contract.slices(chunk) or {}
        for name, values in found.items() if isinstance(found, Mapping) else ():
            if np.shape(values) != (rows_of(chunk),):
                text = f"slices(chunk) of model.py must return arrays of {rows_of(chunk)} rows; {name} has the shape {np.shape(values)}."
                raise UserError(text, FAILED)
        if not isinstance(found, Mapping):
            raise UserError(f"slices(chunk) of model.py must return a dict of arrays; got {type(found).__name__}.", FAILED)
        return {name: np.asarray(values) for name, values in found.items()}

    def _begin(self, chunk: Chunk, outputs: Outputs) -> None:
        self.problem = understand(self.contract, self.classes, outputs, self._labels(chunk))
        if not self.problem.output:
            why = "no output fits the label, or its classes are not known, as the model has no assets.extra/labels.txt; export it anew"
            log("WARNING", f"{self.served.uri}: what it answers of {self.problem.label} cannot be judged: {why}.")
        self.logits = gives_logits(self.problem, outputs)
        if self.other is not None and self.problem.output:
            answers = self.other.answer(chunk)
            if self.problem.output not in answers:
                listed = ", ".join(sorted(answers))
                raise UserError(f"--against: {self.other.uri} has no output {self.problem.output}, which is compared; it has {listed}.")
            self.other_logits = gives_logits(self.problem, answers)
            names = self.other.class_names(self.problem.label)
            if names and names != list(self.problem.classes) and self.problem.kind in (BINARY, MULTICLASS):
                self.order = np.array([names.index(name) if name in names else -1 for name in self.problem.classes])

    def _labels(self, chunk: Chunk) -> Any:
        try:
            return self.labels.of(chunk)
        except UnknownLabel as error:
            raise unseen(self.files, error.label) from None

    def _judged(self, chunk: Chunk, outputs: Outputs, logits: bool, order: np.ndarray | None) -> Judged:
        weights = self.labels.weights(chunk)
        labels = self._labels(chunk) if self.problem.output else None
        return judge(self.problem, outputs, labels, weights, logits, order)

    def _keep_for_score(self, chunk: Chunk, outputs: Outputs, judged: Judged) -> None:
        """Keep whole answers where nothing here knows the trainer's objective, and its own `score` does."""
        if self.scored is None or sum(rows_of(answers) for answers, _ in self.scored) >= SCORE_ROWS:
            return
        if not self.kept.rows and self.problem.output and self.problem.objective in measures.metrics_of(self.problem, judged):
            self.scored = None
            return
        self.scored.append((outputs, self._labels(chunk)))

    def _ranks(self, judged: Judged) -> np.ndarray:
        """Return by what rows are examples: the largest error, or the confidence in a wrong answer."""
        if self.problem.kind == REGRESSION:
            return np.where(judged["weight"] > 0, np.abs(judged["error"]), np.nan)
        if self.problem.kind in (BINARY, MULTICLASS):
            return np.where((judged["hit"] == 0) & (judged["weight"] > 0), judged["confidence"], np.nan)
        return judged["loss"]

    # -------------------------------------------------------------- the figures

    def result(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (what evaluation.json holds but for the files, what the page draws beside it)."""
        problem, judged = self.problem, self.kept.judged
        mine = {name: values for name, values in judged.items() if not name.startswith("other ")}
        theirs = {name.removeprefix("other "): values for name, values in judged.items() if name.startswith("other ")}
        found = self._metrics(mine, self.sums[0])
        problem = self.problem = self._with_objective(problem, found)
        buckets, drift = bucketings(self.kept, problem), self._drift()
        rows = {name: self.drawn.column(name) for name in self.served.specs}
        explanations, explained = explaining.explained(self.contract, self.served, rows, self.hp.seed)
        report: dict[str, Any] = {
            "model": self.served.uri, "data": {"files": [], "rows": self.kept.rows}, "kind": problem.kind,
            "objective": problem.objective, "maximize": problem.maximize, "metrics": found,
            "slices": slices_of(problem, mine, buckets), "signature": self.served.described(),
            "skew": None if drift is None else {name: said["distance"] for name, said in drift.items()},
            "against": self._against(mine, theirs) if self.other is not None else None,
            "details": _details(problem, mine), "explanations": explanations,
            "about": {
                "label": problem.label, "output": problem.output, "classes": list(problem.classes), "loss": problem.loss,
                "drifted": [name for name, said in (drift or {}).items() if said["drifts"]],
                "rows_kept": len(mine["loss"]), "weighted": bool((mine["weight"] != 1).any()),
            },
        }  # fmt: skip
        if theirs and problem.output:
            report["details"]["changes"] = changes(mine, theirs, buckets)
        plots = {
            "judged": mine, "theirs": theirs, "buckets": buckets, "examples": self.examples.listed(), "kept": self.kept, "problem": problem,
            "explained": explained,
        }  # fmt: skip
        return report, plots

    def _metrics(self, judged: Judged, sums: measures.Sums) -> dict[str, float]:
        found = measures.metrics_of(self.problem, judged)
        return found if self.kept.whole else found | sums.metrics(self.problem)

    def _with_objective(self, problem: Problem, found: dict[str, float]) -> Problem:
        """Return the problem with an objective that was measured: the trainer's, by its own score if need be, or the usual one."""
        if problem.objective in found:
            return problem
        if self.scored:
            outputs = concatenate(answers for answers, _ in self.scored)
            labels = [labels for _, labels in self.scored]
            joined = concatenate(labels) if isinstance(labels[0], Mapping) else np.concatenate(labels)
            found[problem.objective] = float(self.contract.score(outputs, joined))
            return problem
        name, maximize = USUAL[problem.kind]
        if problem.output:
            log(
                "WARNING",
                f"{problem.objective} is not measured here, and model.py has no score(outputs, labels): {name} stands for it. Write score.",
            )
        return dataclasses.replace(problem, objective=name, maximize=maximize)

    def _drift(self) -> dict[str, dict[str, Any]] | None:
        """Return how far the rows are from the training rows, by column; dates are left out, which go on in time."""
        kept = profile.load(self.served.folder)
        if kept is None:
            return None
        dates = {column.name for column in self.contract.columns if isinstance(column, Date)}
        return {name: said for name, said in profile.compare(kept, self.profile.as_json()).items() if name not in dates}

    def _against(self, mine: Judged, theirs: Judged) -> dict[str, Any]:
        known = bool(self.problem.output)
        return {
            "model": self.other.uri, "metrics": self._metrics(theirs, self.sums[1]), "signature": self.other.described(),
            "paired": paired(mine["loss"], theirs["loss"], mine["weight"], self.problem.loss) if known else None,
        }  # fmt: skip


def _values_of(contract: Contract, label: str) -> list[str]:
    """Return the classes that a label's column names itself."""
    return sorted(value for column in contract.columns if column.name == label and isinstance(column, Category) for value in column.values)


def _details(problem: Problem, judged: Judged) -> dict[str, Any]:
    """Return the tables behind the metrics."""
    found: dict[str, Any] = {}
    if problem.kind in (BINARY, MULTICLASS):
        found["calibration"] = measures.calibration(judged)["bins"]
        found["classes"] = measures.by_class(problem, judged)
        if len(problem.classes) <= measures.CLASSES:
            found["confusion"] = measures.confusion(problem, judged).tolist()
    if problem.kind == BINARY:
        found["thresholds"] = measures.thresholds(judged)
    return found
