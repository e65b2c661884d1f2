"""What an answer rests on: sampled Shapley values of a model's inputs, by its served signature alone, or integrated gradients.

An input's Shapley value is what it adds to the answer on average, when the inputs take the places of their baselines one by one,
in every order where there are few inputs, else in some random orders, each with its reverse. Words of a text and parts of an image
are taken for inputs of their own. The shares add up to the answer less that to the baseline, whatever the orders:
`approximation_error` says by how much they do not. Integrated gradients are of numeric inputs alone: integrated_gradients.py.

Baselines come from the training rows: the exporter writes them as an ExplanationSpec of the API into `assets.extra/explanation.json`.
Needs TensorFlow and the exported folder, nothing else of this project but predict.py and integrated_gradients.py.

    python -m vertex_runtime.explain MODEL < instances.jsonl      # one JSON value a line; or: scripts/predict MODEL --explain
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

if __package__:
    from . import integrated_gradients, predict
else:
    import integrated_gradients  # type: ignore[no-redef]
    import predict  # type: ignore[no-redef]

SPEC = "explanation.json"
PATHS, MOST_PATHS = 10, 50  # random orders, where the spec does not say
EXACT = 256  # coalitions up to which all are asked about, those of eight inputs, however few orders are wanted
PIECES = 60  # of a text at most: words of a longer one are taken together
GRID = 4  # parts of an image each way
ROWS, IMAGES = 4096, 128  # asked at a time


class Explainer:
    """Explains answers of one model.

    Args:
        signature: of the SavedModel, as `predict.load_signature` gives it.
        spec: an ExplanationSpec in the API's JSON form; one baseline for each input.

    Raises:
        ValueError: the spec does not fit the signature, or asks for another method.
    """

    def __init__(self, signature: Any, spec: Mapping[str, Any]):
        self.signature, self.specs = signature, signature.structured_input_signature[1]
        metadata = spec.get("metadata", {})
        self.inputs = {each.get("inputTensorName") or name: each for name, each in metadata.get("inputs", {}).items()}
        self.names = {each.get("inputTensorName") or name: name for name, each in metadata.get("inputs", {}).items()}
        if unknown := sorted(self.inputs.keys() - self.specs.keys()):
            raise ValueError(f"0: the explanation's metadata names the input {unknown[0]}; the model takes {', '.join(sorted(self.specs))}")
        outputs = {each.get("outputTensorName") or name: each for name, each in metadata.get("outputs", {}).items()}
        self.output = output_of(signature.structured_outputs, list(outputs))
        self.display = outputs.get(self.output, {}).get("indexDisplayNameMapping") or []
        self.paths = _count(spec, "sampledShapleyAttribution", "pathCount", MOST_PATHS) or PATHS
        self.steps = _count(spec, "integratedGradientsAttribution", "stepCount", integrated_gradients.MOST_STEPS)
        named = self.inputs or self.specs if self.steps else self.specs
        self.baseline = {name: self._baseline(name) for name in named if not self.steps or self.modality(name) in ("", "numeric")}
        if self.steps:
            integrated_gradients.check(self.specs, self.baseline)

    def _baseline(self, name: str) -> Any:
        spec, given = self.specs[name], self.inputs.get(name, {}).get("inputBaselines") or []
        if len(given) > 1:
            raise ValueError(f"0: {name} has {len(given)} baselines; one is used here")
        if self.modality(name) == "image":
            return None
        if not given:
            empty: Any = "" if spec.dtype.name == "string" else 0
            for size in reversed(spec.shape[1:]):
                empty = [empty] * (size or 1)
            return empty
        value = given[0]
        if spec.dtype.is_integer and isinstance(value, float) and value.is_integer():
            value = int(value)  # the API's messages know no whole numbers
        try:
            return predict.value_of(value, spec.dtype, name, 0)
        except ValueError as error:
            raise ValueError(f"{error} as its baseline") from None

    def modality(self, name: str) -> str:
        """Return what the spec says that an input is: numeric, categorical, text or image."""
        return self.inputs.get(name, {}).get("modality", "")

    def explain(self, instances: Sequence[Any], seed: int = 0) -> list[dict[str, Any]]:
        """Explain the answers to instances.

        Returns:
            For each: `output_name`, `output_index` ([] for an output of one value, else the likeliest class's), its
            `output_display_name`, `baseline_output_value`, `instance_output_value`, `attributions` by input (a number; of a
            text one for each of its words, as blanks part them; of an image one for each part, row by row; by integrated
            gradients as many as the input has numbers), `approximation_error` (relative) and `standard_error` (of the shares,
            0 where every order was tried).

        Raises:
            ValueError: as `predict.answer`.
        """
        columns = predict.columns_of(self.signature, instances)
        if self.steps:
            return self._by_gradients(columns) if instances else []
        found: list[dict[str, Any]] = []
        waiting: list[_Game] = []
        for place in range(len(instances)):
            waiting.append(_Game(self, {name: values[place] for name, values in columns.items()}, seed))
            if sum(len(game.masks) for game in waiting) >= ROWS or place == len(instances) - 1:
                try:
                    found += self._play(waiting)
                except ValueError as error:
                    raise ValueError(f"{len(found)}: cannot be explained: {str(error).partition(': ')[2]}") from None
                waiting = []
        return found

    def _by_gradients(self, columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        found = integrated_gradients.attribute(self.signature, self.output, columns, self.baseline, self.steps)
        said = []
        for place, index in enumerate(found.index.tolist()):
            shares = {self.names.get(name, name): values[place].tolist() for name, values in found.shares.items()}
            total = sum(float(values[place].sum()) for values in found.shares.values())
            said.append(self._said(found.baseline[place], found.reached[place], index, shares, total, 0.0))
        return said

    def _said(self, first: Any, last: Any, index: int, attributions: dict[str, Any], total: float, error: float) -> dict[str, Any]:
        """Return one explanation.

        Args:
            first, last: the outputs at the baseline and at the instance, [values].
            index: of the value that is explained.
            total: the sum of all shares.
        """
        baseline, reached, single = float(first[index]), float(last[index]), len(last) == 1
        gap = abs(total - (reached - baseline)) / max(abs(reached - baseline), 1e-12)
        return {
            "output_name": self.output, "output_index": [] if single else [index],
            "output_display_name": str(self.display[index]) if not single and index < len(self.display) else "",
            "baseline_output_value": baseline, "instance_output_value": reached, "attributions": attributions,
            "approximation_error": abs(total) if reached == baseline else gap, "standard_error": error,
        }  # fmt: skip

    def _play(self, games: Sequence[_Game]) -> list[dict[str, Any]]:
        """Ask about all coalitions of some instances, in batches, and share out their answers."""
        images = any(self.modality(name) == "image" for name in self.specs)
        size, answers = IMAGES if images else ROWS, []
        pending: dict[str, list[Any]] = {name: [] for name in self.specs}
        for game in games:
            for mask in game.masks:
                for name, value in game.row(mask).items():
                    pending[name].append(value)
            while len(next(iter(pending.values()))) >= size or (game is games[-1] and next(iter(pending.values()))):
                batch = {name: values[:size] for name, values in pending.items()}
                pending = {name: values[size:] for name, values in pending.items()}
                answers.append(predict.ask(self.signature, batch)[self.output])
        joined = np.concatenate(answers).astype(np.float64)
        joined = joined.reshape(len(joined), -1)
        ends = np.cumsum([len(game.masks) for game in games])
        return [game.shared(joined[end - len(game.masks) : end]) for game, end in zip(games, ends)]


class _Game:
    """One instance: its units (inputs, words, parts of images), the coalitions of them to ask about, and the shares."""

    def __init__(self, explainer: Explainer, instance: Mapping[str, Any], seed: int):
        self.explainer, self.instance = explainer, dict(instance)
        self.pieces: dict[str, list[str]] = {}
        self.pictures: dict[str, Any] = {}
        self.units: list[tuple[str, int]] = []
        for name, value in self.instance.items():
            self.units += [(name, i) for i in range(self._count(name, value))]
        count = len(self.units)
        self.exact = 2**count <= max(EXACT, explainer.paths * (count + 1))
        if self.exact:
            self.masks = (np.arange(2**count)[:, None] >> np.arange(count)) & 1 == 1
            return
        random = np.random.default_rng(seed)
        self.orders = []
        for i in range(explainer.paths):  # each order with its reverse, whose chances even out
            self.orders.append(self.orders[-1][::-1] if i % 2 else random.permutation(count))
        ranks = np.argsort(np.stack(self.orders), axis=1)
        steps = ranks[:, None, :] < np.arange(1, count)[None, :, None]  # [paths, units - 1, units]
        ends = np.stack([np.zeros(count, bool), np.ones(count, bool)])
        self.masks = np.concatenate([ends, steps.reshape(-1, count)])

    def _count(self, name: str, value: Any) -> int:
        """Return how many units an input is, and take it to pieces."""
        kind = self.explainer.modality(name)
        if kind == "text" and isinstance(value, (str, bytes)):
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            words = text.split()
            each = -(-len(words) // PIECES) or 1
            self.pieces[name] = [" ".join(words[i : i + each]) for i in range(0, len(words), each)]
            return max(1, len(self.pieces[name]))
        if kind == "image":
            self.pictures[name] = _Picture(value)
            return GRID * GRID
        return 1

    def row(self, mask: Sequence[bool]) -> dict[str, Any]:
        """Return the inputs with baselines for the units that are not in a coalition."""
        present: dict[str, list[bool]] = {}
        for (name, _), is_in in zip(self.units, mask):
            present.setdefault(name, []).append(bool(is_in))
        row = {}
        for name, value in self.instance.items():
            units = present[name]
            if all(units):
                row[name] = value
            elif name in self.pictures:
                row[name] = self.pictures[name].with_parts(units)
            elif not any(units):
                row[name] = self.explainer.baseline[name]
            else:
                row[name] = " ".join(piece for piece, is_in in zip(self.pieces[name], units) if is_in)
        return row

    def shared(self, answers: Any) -> dict[str, Any]:
        """Return the explanation, given the outputs of all coalitions, [masks, values]."""
        last, first = (-1, 0) if self.exact else (1, 0)
        index = int(answers[last].argmax())
        values = answers[:, index]
        shares, error = self._exactly(values) if self.exact else self._by_orders(values)
        total, by_input = float(np.sum(shares)), self._by_input(np.asarray(shares))
        return self.explainer._said(answers[first], answers[last], index, by_input, total, error)

    def _exactly(self, values: Any) -> tuple[Any, float]:
        count = len(self.units)
        places = np.arange(2**count)
        sizes = self.masks.sum(1)
        weights = np.array([math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count) for size in range(count)])
        shares = []
        for unit in range(count):
            without = places[~self.masks[:, unit]]
            shares.append(float((weights[sizes[without]] * (values[without | (1 << unit)] - values[without])).sum()))
        return np.array(shares), 0.0

    def _by_orders(self, values: Any) -> tuple[Any, float]:
        count, paths = len(self.units), len(self.orders)
        between = values[2:].reshape(paths, count - 1)
        whole = np.concatenate([np.full((paths, 1), values[0]), between, np.full((paths, 1), values[1])], 1)
        added = np.zeros((paths, count))
        for path, order in enumerate(self.orders):
            added[path, order] = np.diff(whole[path])
        pairs = added[: paths // 2 * 2].reshape(-1, 2, count).mean(1) if paths > 3 else added
        error = float(pairs.std(0, ddof=1).max() / math.sqrt(len(pairs))) if len(pairs) > 1 else math.nan
        return added.mean(0), error

    def _by_input(self, shares: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for (name, _), share in zip(self.units, shares.tolist()):
            found.setdefault(name, []).append(share)
        for name, each in found.items():
            if name in self.pieces:
                # Words that were taken together have equal parts of their share.
                words = [[share / len(piece.split())] * len(piece.split()) for share, piece in zip(each, self.pieces[name])]
                found[name] = [share for piece in words for share in piece] or each
            elif name in self.pictures:
                found[name] = [each[i : i + GRID] for i in range(0, GRID * GRID, GRID)]
            else:
                found[name] = each[0]
        return {self.explainer.names.get(name, name): share for name, share in found.items()}


class _Picture:
    """An image whose parts can be blanked out with its mean colour."""

    def __init__(self, content: bytes):
        import tensorflow as tf

        try:
            self.pixels = tf.io.decode_image(content, expand_animations=False).numpy()
        except tf.errors.InvalidArgumentError:
            raise ValueError("0: the image does not decode") from None
        self.mean = self.pixels.mean((0, 1)).round().astype(self.pixels.dtype)
        self.edges = [np.linspace(0, side, GRID + 1).astype(int) for side in self.pixels.shape[:2]]

    def with_parts(self, present: Sequence[bool]) -> bytes:
        """Return the image as a PNG with only these parts, row by row."""
        import tensorflow as tf

        pixels = self.pixels.copy()
        for unit, is_in in enumerate(present):
            if not is_in:
                (top, bottom), (left, right) = (self.edges[axis][place : place + 2] for axis, place in enumerate(divmod(unit, GRID)))
                pixels[top:bottom, left:right] = self.mean
        return tf.io.encode_png(pixels, compression=1).numpy()


def _count(spec: Mapping[str, Any], method: str, name: str, most: int) -> int:
    """Return the count of a method; 0 where the spec does not say."""
    given = spec.get("parameters", {}).get(method)
    if given is None or (method == "sampledShapleyAttribution" and name not in given):
        return 0
    count = int(given.get(name, 0))
    if not 1 <= count <= most:
        raise ValueError(f"0: {name} takes 1 to {most}; got {count}")
    return count


def output_of(outputs: Mapping[str, Any], wanted: Sequence[str] = ()) -> str:
    """Return the output to explain: the one that the spec names, else scores of classes, else the first number."""
    numbers = {name: spec for name, spec in outputs.items() if spec.dtype.is_floating}
    if unknown := sorted(set(wanted) - set(outputs)):
        raise ValueError(f"0: the explanation's metadata names the output {unknown[0]}; the model has {', '.join(sorted(outputs))}")
    named = [name for name in wanted if name in numbers]
    wide = [name for name, spec in numbers.items() if (spec.shape.rank or 0) > 1]
    if found := [*named, *wide, *numbers]:
        return found[0]
    raise ValueError(f"0: the model has no output of numbers that could be explained, only {', '.join(outputs)}")


def load_spec(directory: str) -> dict[str, Any]:
    """Return the ExplanationSpec that the exporter left with a model.

    Raises:
        ValueError: there is none.
    """
    import tensorflow as tf

    path = f"{directory.rstrip('/')}/assets.extra/{SPEC}"
    if not tf.io.gfile.exists(path):
        raise ValueError(f"{directory} has no assets.extra/{SPEC} with baselines. Export it anew with this version (--only=export).")
    with tf.io.gfile.GFile(path, "r") as file:
        return json.load(file)


def print_lines(directory: str, lines: Iterable[str], parameters: Mapping[str, Any] | None = None, seed: int = 0) -> None:
    """Explain JSON lines on stdout, one JSON value per line, in order.

    Args:
        parameters: ExplanationParameters of the API, instead of the model's own.

    Raises:
        ValueError: a line does not fit the model; it is named.
    """
    signature, spec = predict.load_signature(directory), load_spec(directory)
    explainer = Explainer(signature, {**spec, "parameters": parameters} if parameters else spec)
    for numbers, instances in predict.batches(lines):
        try:
            found = explainer.explain(instances, seed)
        except ValueError as error:
            place, _, text = str(error).partition(": ")
            raise ValueError(f"line {numbers[int(place)]}: {text}") from None
        for each in found:
            print(json.dumps(each, ensure_ascii=False), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Explain the answers to JSON lines from stdin on stdout, one JSON value per line, in order."""
    parser = argparse.ArgumentParser(prog="python -m vertex_runtime.explain", description=main.__doc__)
    parser.add_argument("model_dir", help="folder of the SavedModel: what a trainer writes to <output_dir>/model")
    methods = parser.add_mutually_exclusive_group()
    methods.add_argument("--paths", type=int, help=f"random orders of the inputs, up to {MOST_PATHS} (default: the model's own)")
    text = f"by integrated gradients, at so many places of the way, up to {integrated_gradients.MOST_STEPS}"
    methods.add_argument("--steps", type=int, help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        print_lines(args.model_dir, sys.stdin, _parameters(args), args.seed)
    except ValueError as error:
        sys.stdout.flush()
        print(f"error: {re.sub('^0: ', '', str(error))}", file=sys.stderr)
        return 2
    return 0


def _parameters(args: argparse.Namespace) -> dict[str, Any] | None:
    for flag, value, most in (("--paths", args.paths, MOST_PATHS), ("--steps", args.steps, integrated_gradients.MOST_STEPS)):
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{flag} takes 1 to {most}; got {value}")
    if args.steps is not None:
        return {"integratedGradientsAttribution": {"stepCount": args.steps}}
    return None if args.paths is None else {"sampledShapleyAttribution": {"pathCount": args.paths}}


if __name__ == "__main__":
    sys.exit(main())
