"""The parts of an evaluation's page that depend on the kind of problem, its examples and its explanations."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ..columns import Image
from ..data import PATH
from ..data_report.parts import shown
from ..pages import cell, clipped, svg, table
from . import charts
from .explaining import by_size
from .metrics import curve
from .problem import ABSOLUTE, LOG, REGRESSION, SQUARED, ZERO_ONE

MATRIX = 26  # classes up to which a confusion matrix is shown whole
PIXELS = 112  # of a thumbnail's longer side
LONGEST = 600  # characters of a text that are shown


def measure(loss: str, value: float) -> tuple[str, float]:
    """Return (name, value) of a mean loss as people read it: the root of a mean squared error."""
    if loss == SQUARED:
        return "rmse", math.copysign(math.sqrt(abs(value)), value) if value > 0 else 0.0
    return {ABSOLUTE: "mae", LOG: "log loss", ZERO_ONE: "share of errors"}[loss], max(0.0, value)


def _card(title: str, drawn: str, note: str = "") -> str:
    said = f'<p class="faint">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h3>{escape(title)}</h3>{drawn}{said}</section>'


# ------------------------------------------------------------------ regression


def regression(report: Mapping[str, Any], plots: Mapping[str, Any]) -> Iterator[str]:
    """Yield predictions against labels, the errors' distribution, and maps of the errors."""
    judged, label = plots["judged"], report["about"]["label"]
    yield '<h2>Errors</h2><div class="cards">'
    title = "Predictions by label: a stronger colour is more rows"
    drawn = charts.density(judged["label"], judged["prediction"], (label, "predicted"), title)
    yield _card("Predicted against actual", drawn, "Rows on the dashed line are answered exactly; below it too low, above it too high.")
    errors = {"this model": judged["error"]} | ({"the other": plots["theirs"]["error"]} if plots["theirs"] else {})
    yield _card("Residuals", charts.histogram(errors, "predicted - actual", "Histogram of predicted less actual"))
    for title, longitude, latitude in places(plots["kept"]):
        known = np.isfinite(longitude) & np.isfinite(latitude)
        if known.sum() >= 50:
            drawn = charts.residual_map(longitude[known], latitude[known], judged["error"][known], f"Mean error by {title}")
            yield _card(f"Residuals by {title}", drawn)
    yield "</div>"


def places(kept: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (name, longitudes, latitudes) of the pairs of columns that hold degrees, as names and ranges tell."""
    numbers = [name for name, column in kept.columns.items() if column.kind == "number"]
    for name in numbers:
        if not re.search(r"(^|_)lat(itude)?(_|$)", name.lower()):
            continue
        other = next((each for each in numbers if each != name and _as_latitude(each) == name.lower()), None)
        if other is None:
            continue
        longitude, latitude = kept.column(other), kept.column(name)
        within = [np.nanmax(np.abs(values), initial=0) <= most for values, most in ((longitude, 180), (latitude, 90))]
        if all(within):
            yield re.sub(r"_?lat(itude)?_?", "", name.lower()) or "place", longitude, latitude


def _as_latitude(name: str) -> str:
    """Return the name of the latitude's column that would go with a longitude's."""
    return re.sub(r"(^|_)(lng|lon)(_|$)", r"\1lat\3", name.lower().replace("longitude", "latitude"))


# ------------------------------------------------------------------ classes


def classes(report: Mapping[str, Any], plots: Mapping[str, Any]) -> Iterator[str]:
    """Yield the confusion matrix, the classes' figures, calibration, and of two classes curves and thresholds."""
    details = report["details"]
    yield "<h2>Classes</h2>"
    matrix = _confusion(report["about"]["classes"], np.array(details["confusion"])) if "confusion" in details else ""
    yield f'<div class="two">{matrix}{_by_class(details["classes"])}</div>'
    yield '<div class="cards">'
    two = report["kind"] == "binary"
    names = report["about"]["classes"]
    said, true = (f"score of {names[1]}", f"share that is {names[1]}") if two else ("confidence", "share that is right")
    note = f"Expected calibration error {report['metrics']['ece']:.3f}: the mean distance from the dashed line, by rows."
    yield _card("Calibration", charts.calibration(details["calibration"], (said, true), "Calibration: dots are larger for more rows"), note)
    if two:
        yield from _curves(plots)
    yield "</div>"
    if "thresholds" in details:
        yield f"<h2>Deciding for {escape(names[1])} from a score on</h2>" + _thresholds(details["thresholds"])


def _confusion(names: Sequence[str], matrix: np.ndarray) -> str:
    shown_rows = list(range(len(names)))
    note = ""
    if len(names) > MATRIX:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
        shown_rows = sorted(np.argsort(-wrong)[:MATRIX].tolist())
        note = f'<p class="faint">The {MATRIX} of {len(names)} classes with the most errors.</p>'
    totals = np.maximum(matrix.sum(1), 1e-300)
    head = "".join(f"<th>{escape(names[j])}</th>" for j in shown_rows)
    rows = []
    for i in shown_rows:
        cells = []
        for j in shown_rows:
            share, color = matrix[i, j] / totals[i], "--c" if i == j else "--b"
            back = f"color-mix(in srgb, var({color}) {70 * share:.0f}%, transparent)"
            cells.append(f'<td style="background: {back}" title="{share:.1%}">{matrix[i, j]:,.6g}</td>')
        rows.append(f"<tr><th>{escape(names[i])}</th>{''.join(cells)}</tr>")
    body = f'<table class="matrix"><tr><th>true \\ predicted</th>{head}</tr>{"".join(rows)}</table>'
    return f'<div class="scroll">{body}{note}</div>'


def _by_class(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            cell("left", row["class"]), f"{row['weight']:,.6g}", f"{row['predicted']:,.6g}",
            *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")),
        ]
        for row in rows
    ]  # fmt: skip
    drawn = table(["class", "rows", "predicted", "precision", "recall", "F1"], cells)
    return drawn if len(rows) <= 30 else f"<details><summary>Precision and recall of {len(rows)} classes</summary>{drawn}</details>"


def _curves(plots: Mapping[str, Any]) -> Iterator[str]:
    sides = [rows for rows in (plots["judged"], plots["theirs"]) if rows]
    roc, precision = [], []
    for rows in sides:
        _, positives, negatives = curve(rows["label"], rows["score"], rows["weight"])
        if not positives[-1] or not negatives[-1]:
            return
        roc.append((negatives / negatives[-1], positives / positives[-1]))
        precision.append((positives[1:] / positives[-1], positives[1:] / (positives[1:] + negatives[1:])))
    yield _card("ROC", charts.curves(roc, ("false positives", "true positives"), "ROC curve", True))
    yield _card("Precision and recall", charts.curves(precision, ("recall", "precision"), "Precision by recall", False))


def _thresholds(rows: Sequence[Mapping[str, float]]) -> str:
    names = ("share", "precision", "recall", "f1", "false_positives", "accuracy")
    cells = [[f"{row['threshold']:g}", *(f"{row[name]:.3f}" for name in names)] for row in rows]
    return table(["score", "decided for", "precision", "recall", "F1", "false positives", "accuracy"], cells)


# ------------------------------------------------------------------ examples


def examples(report: Mapping[str, Any], plots: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rows with the largest errors, or the most confident mistakes: images as thumbnails, others as a table."""
    found, kept = plots["examples"], plots["kept"]
    if not found:
        return
    title = {"binary": "The most confident mistakes", "multiclass": "The most confident mistakes", "multilabel": "The largest losses"}
    yield f"<h2>{title.get(report['kind'], 'The largest errors')}</h2>"
    image = next((name for name, column in kept.known.items() if isinstance(column, Image) and name in found[0]["row"]), None)
    if image:
        yield f'<div class="examples">{"".join(_figure(report, each, image) for each in found)}</div>'
        return
    label = report["about"]["label"]
    names = [name for name in found[0]["row"] if name not in (label, PATH)]
    heads = ["said", "true", "confidence"] if report["about"]["classes"] else ["predicted", "actual", "error"]
    if report["kind"] not in (REGRESSION, "binary", "multiclass"):
        heads = ["loss"]
    rows = [[*_verdict(report, each["judged"]), *(_cell(each["row"][name]) for name in names)] for each in found]
    yield table([*heads, *map(escape, names)], rows)


def _verdict(report: Mapping[str, Any], judged: Mapping[str, Any]) -> list[str]:
    names = report["about"]["classes"]
    if report["kind"] == REGRESSION:
        return [f"{judged['prediction']:.5g}", f"{judged['label']:.5g}", f"{judged['error']:+.4g}"]
    if "predicted" in judged:
        cells = [cell("left", names[int(judged[key])]) for key in ("predicted", "label")]
        return [*cells, f"{judged['confidence']:.3f}"]
    return [f"{float(judged['loss']):.4g}"]


def _told(value: Any) -> str:
    """Return a cell as text; a missing one is said to be that."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else shown(value)
    return "missing" if text in ("", "nan") else text


def _cell(value: Any) -> str:
    text = _told(value)
    if len(text) <= 26:
        return cell("left", text) if isinstance(value, bytes) else escape(text)
    return cell("text", clipped(text, LONGEST + 1))


def _figure(report: Mapping[str, Any], example: Mapping[str, Any], image: str) -> str:
    judged, names = example["judged"], report["about"]["classes"]
    if "predicted" in judged:
        said = f"<b>{escape(names[int(judged['predicted'])])}</b> {judged['confidence']:.2f}, is {escape(names[int(judged['label'])])}"
    else:
        said = ", ".join(_verdict(report, judged))
    path = example["row"].get(PATH)
    where = f'<p class="said faint">{escape(path.decode("utf-8", "replace").rpartition("/")[2])}</p>' if path else ""
    return f'<figure><img alt="" src="{thumbnail(example["row"][image])}"><p class="said">{said}</p>{where}</figure>'


def thumbnail(content: bytes) -> str:
    """Return an image as a small PNG in a data URI; an empty one where it does not decode."""
    import tensorflow as tf

    try:
        pixels = tf.io.decode_image(content, expand_animations=False)[..., :3]
        longer = max(pixels.shape[:2])
        if longer > PIXELS:
            size = [max(1, round(side * PIXELS / longer)) for side in pixels.shape[:2]]
            pixels = tf.cast(tf.clip_by_value(tf.image.resize(pixels, size, method="area"), 0, 255), tf.uint8)
        small = tf.io.encode_png(tf.cast(pixels, tf.uint8)).numpy()
    except (tf.errors.InvalidArgumentError, ValueError):
        return "data:,"
    return f"data:image/png;base64,{base64.b64encode(small).decode()}"


# ------------------------------------------------------------------ explanations


def explanations(report: Mapping[str, Any], plots: Mapping[str, Any]) -> Iterator[str]:
    """Yield how much each column moves the answers, and some answers taken apart."""
    found, examples = report.get("explanations"), plots["explained"]
    if not found:
        return
    yield "<h2>What the answers rest on</h2>"
    how = f"Shapley values of {found['rows']} answers: what each input adds to the answer that the training rows' usual values get"
    error, gap = found["largest_standard_error"], found["largest_approximation_error"]
    noise = f", give or take up to {error:.2g} by the random orders" if error else ""
    yield f'<p class="faint">{how}{noise}. They add up to the difference of both (largest gap {gap:.1g}).</p>'
    yield '<div class="cards">'
    if len(found["columns"]) > 1:
        unit = report["about"]["label"] if report["kind"] == REGRESSION else "of the score"
        rows = [{"name": name, "value": value, "told": f"{value:.3g}"} for name, value in list(found["columns"].items())[:30]]
        title = f"Mean size of each column's share, {unit}"
        yield _card(title, charts.bars(rows, None, title))
    if all(kind not in ("text", "image") for kind in examples[0]["kinds"].values()):
        yield from map(_taken_apart, examples)
    yield "</div>"
    for name, kind in examples[0]["kinds"].items():
        if kind == "text":
            yield from (_marked(each, name) for each in examples)
        elif kind == "image":
            yield f'<div class="examples">{"".join(_marked_image(each, name) for each in examples)}</div>'


def _answer(example: Mapping[str, Any]) -> str:
    name = example["output_display_name"]
    return f"{name + ' ' if name else ''}{example['instance_output_value']:.4g}, from {example['baseline_output_value']:.4g}"


def _taken_apart(example: Mapping[str, Any]) -> str:
    rows = []
    for name, share in by_size(example["attributions"])[:12]:
        rows.append((f"{name} {_told(example['row'][name])}"[:44], share, f"{share:+.3g}"))
    return _card(_answer(example), charts.signed_bars(rows, f"Shares of the inputs: {_answer(example)}"))


def _marked(example: Mapping[str, Any], name: str) -> str:
    """Return a text whose words are marked by their shares."""
    words, shares = example["row"][name].decode("utf-8", "replace").split(), example["attributions"][name]
    strongest = max(map(abs, shares), default=0) or 1.0
    marked = []
    for word, share in zip(words[:150], shares):
        color = "--c" if share > 0 else "--b"
        back = f"color-mix(in srgb, var({color}) {65 * abs(share) / strongest:.0f}%, transparent)"
        marked.append(f'<mark style="background: {back}" title="{share:+.3g}">{escape(word)}</mark>')
    return f'<p class="words"><b>{escape(_answer(example))}:</b> {" ".join(marked)}</p>'


def _marked_image(example: Mapping[str, Any], name: str) -> str:
    """Return an image with its parts coloured by their shares."""
    grid = example["attributions"][name]
    strongest, size, cells = max(abs(share) for row in grid for share in row) or 1.0, 100 / len(grid), []
    for i, row in enumerate(grid):
        for j, share in enumerate(row):
            place = f'x="{j * size:.1f}" y="{i * size:.1f}" width="{size:.1f}" height="{size:.1f}"'
            color, shade = "var(--c)" if share > 0 else "var(--b)", 0.7 * abs(share) / strongest
            cells.append(f'<rect {place} fill="{color}" fill-opacity="{shade:.2f}"><title>{share:+.3g}</title></rect>')
    picture = f'<image href="{thumbnail(example["row"][name])}" width="100" height="100" preserveAspectRatio="none"/>'
    drawn = svg("Parts of the image by their shares: green for, orange against", 100, 100, [picture, *cells])
    return f'<figure>{drawn}<p class="said">{escape(_answer(example))}</p></figure>'
