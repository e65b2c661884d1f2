"""How a question's text becomes numbers, and what that needs to know of the training rows; TensorFlow operations only.

N-grams are cut, hashed and counted by integer operations on all texts at once, so no string is ever made for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from .hyperparameters import Hyperparameters

LABEL = "label"

Facts = Mapping[str, Any]

_NOT_WORD = r"[^\pL\pN_#+]+"  # "c#" and "c++" stay words
_MULTIPLIER, _MIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd, 64 bits, from splitmix64
BLOCK = 1024  # texts handled at a time



def preprocess(raw: Mapping[str, tf.Tensor], hp: Hyperparameters, facts: Facts) -> dict[str, tf.Tensor]:
    """Turn raw texts [n] into features of fixed width; this very graph is also the served one."""
    text = raw["text"]
    if hp.model == "cnn":
        words = _word_ids(_clean(text, hp), hp)
        return {"ids": words.to_tensor(0, shape=[None, facts["widths"][0]])}
    # By blocks, since a long text has thousands of n-grams; one block at least, for no text at all.
    blocks = tf.maximum(1, (tf.size(text) + BLOCK - 1) // BLOCK)
    width = sum(facts["widths"])
    found = tuple(tf.TensorArray(kind, blocks, element_shape=[None, width], infer_shape=False) for kind in (tf.int32, tf.float32))

    def one(i: tf.Tensor, ids: tf.TensorArray, weights: tf.TensorArray) -> tuple[Any, ...]:
        block = _weigh(_clean(text[i * BLOCK : (i + 1) * BLOCK], hp), hp, facts)
        return i + 1, ids.write(i, block[0]), weights.write(i, block[1])

    _, ids, weights = tf.while_loop(lambda i, *_: i < blocks, one, (tf.constant(0), *found))
    return {"ids": ids.concat(), "weights": weights.concat()}


def _weigh(text: tf.Tensor, hp: Hyperparameters, facts: Facts) -> tuple[tf.Tensor, tf.Tensor]:
    """Return table rows and weights [n, width] of clean texts."""
    texts, ids, weights = tf.size(text, tf.int64), [], []
    for (row, bucket), share, width in zip(_ngram_groups(text, hp), (1.0, hp.word_weight), facts["widths"]):
        index = tf.gather(tf.constant(facts["index"]), bucket)
        known = index >= 0
        row, index, count = _distinct(tf.boolean_mask(row, known), tf.boolean_mask(index, known))
        weight = (1.0 + tf.math.log(tf.cast(count, tf.float32))) * tf.gather(tf.constant(facts["weight"]), index)
        ids.append(_padded(index, row, texts, width))
        weights.append(share * tf.math.l2_normalize(_padded(weight, row, texts, width), axis=-1))
    return tf.concat(ids, 1), tf.concat(weights, 1)


def _clean(text: tf.Tensor, hp: Hyperparameters) -> tf.Tensor:
    """Cut and lower-case; the result is valid UTF-8 whatever came in."""
    return tf.strings.lower(tf.strings.substr(text, 0, hp.max_bytes), encoding="utf-8")


def _words(text: tf.Tensor) -> tf.RaggedTensor:
    return tf.strings.split(tf.strings.regex_replace(text, _NOT_WORD, " "))


def _word_ids(text: tf.Tensor, hp: Hyperparameters) -> tf.RaggedTensor:
    """Return hashed words as 1..vocabulary-1; 0 is left for padding."""
    words = _words(text)
    ids = tf.strings.to_hash_bucket_fast(words.flat_values, hp.vocabulary - 1) + 1
    return words.with_flat_values(tf.cast(ids, tf.int32))


def _ngram_groups(text: tf.Tensor, hp: Hyperparameters) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Return text numbers and buckets of all n-grams, for each group."""
    return [(row, _bucket(value, hp)) for row, value in (_char_ngrams(text, hp), _word_ngrams(text))]


def _char_ngrams(text: tf.Tensor, hp: Hyperparameters) -> tuple[tf.Tensor, tf.Tensor]:
    """Cut n-grams out of each word with a space put before and after it; return rows and 64-bit hashes."""
    points = tf.strings.unicode_decode(tf.strings.join([" ", text, " "]), "UTF-8")
    code, row = points.flat_values, points.value_rowids()
    inside = (code > 0x20) & (code != 0xA0) & (code != 0x3000)
    code = tf.cast(tf.where(inside, code, 0x20), tf.uint64)
    # Texts lie end to end, spaces between them. A window is an n-gram of one word just when no
    # space is inside it, so neither word nor text borders need more care.
    rows, hashes = [], []
    value, valid = code, tf.ones_like(inside)
    for n in range(2, hp.max_n + 1):
        value = value[:-1] * tf.constant(_MULTIPLIER, tf.uint64) + code[n - 1 :]
        valid = (valid[:-1] & inside[n - 2 : -1]) if n > 2 else (inside[:-1] | inside[1:])
        if n >= hp.min_n:
            rows.append(tf.boolean_mask(row[: tf.size(value)], valid))
            hashes.append(tf.boolean_mask(value, valid))
    return tf.concat(rows, 0), tf.concat(hashes, 0)


def _word_ngrams(text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return rows and 64-bit hashes of words and of pairs of neighbouring words."""
    words = _words(text)
    row = words.value_rowids()
    value = tf.cast(tf.strings.to_hash_bucket_fast(words.flat_values, 2**62), tf.uint64)
    pair = value[:-1] * tf.constant(_MULTIPLIER, tf.uint64) + value[1:]
    same = row[:-1] == row[1:]
    return tf.concat([row, tf.boolean_mask(row[:-1], same)], 0), tf.concat([value, tf.boolean_mask(pair, same)], 0)


def _bucket(value: tf.Tensor, hp: Hyperparameters) -> tf.Tensor:
    """Mix all bits of 64-bit hashes and keep the first `hash_bits`."""
    value = tf.bitwise.bitwise_xor(value, tf.bitwise.right_shift(value, tf.constant(32, tf.uint64)))
    value *= tf.constant(_MIX, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(value, tf.constant(64 - hp.hash_bits, tf.uint64)), tf.int32)


def _distinct(row: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return row, index and count of each distinct pair, sorted. Sorting beats `tf.unique` threefold."""
    key = tf.sort(row * 2**32 + tf.cast(index, tf.int64))
    first = tf.concat([tf.ones_like(key[:1], tf.bool), key[1:] != key[:-1]], 0)
    start = tf.where(first)[:, 0]
    count = tf.concat([start[1:], [tf.size(key, tf.int64)]], 0)[: tf.size(start)] - start
    key = tf.gather(key, start)
    return key // 2**32, tf.cast(key % 2**32, tf.int32), count


def _padded(values: tf.Tensor, row: tf.Tensor, rows: tf.Tensor, width: int) -> tf.Tensor:
    """Lay out values by row, cut or padded with 0 to the width."""
    return tf.RaggedTensor.from_value_rowids(values, row, rows).to_tensor(shape=[None, width])


def learn(chunks: Iterable[Mapping[str, Any]], hp: Hyperparameters) -> Facts:
    """Learn class names, vocabulary, n-gram weights and widths from the training rows.

    Args:
        chunks: columns by name, of some rows each: `text` and `label`.
    """
    measure = tf.function(lambda text: _measure(text, hp), input_signature=[tf.TensorSpec([None], tf.string)])
    names: list[np.ndarray] = []
    places, buckets, lengths = [], [], []
    for chunk in chunks:
        for start in range(0, len(chunk["text"]), BLOCK):
            row, bucket, length = measure(tf.convert_to_tensor(chunk["text"][start : start + BLOCK]))
            places.append(row.numpy() + sum(map(len, names)))
            buckets.append(bucket.numpy())
            lengths.append(length.numpy())
            names.append(np.asarray(chunk[LABEL][start : start + BLOCK]).astype(bytes))
    classes, label = np.unique(np.concatenate(names), return_inverse=True)
    prior = np.bincount(label) / len(label)
    facts = {"class_names": np.char.decode(classes, "utf-8"), "prior": prior.astype(np.float32), "sharpness": 1.0}
    # For three texts of four nothing is cut; of the others what tells least is (see `_choose_ngrams`).
    widths = np.ceil(np.quantile(np.concatenate(lengths, 1), hp.coverage, axis=1)).astype(int).tolist()
    if hp.model == "cnn":
        # Two convolutions of 7 with stride 3 need 25 words.
        return facts | {"widths": [hp.sequence_length or min(max(widths[0], 25), 250)]}
    # Words, of which a long text has fewer, may take up to half of the room.
    words = min(widths[1], hp.max_features // 2)
    widths = [max(1, min(widths[0], hp.max_features - words)), max(1, words)]
    index, weight, evidence = _choose_ngrams(np.concatenate(buckets), label[np.concatenate(places)], prior, hp)
    return facts | {"widths": widths, "index": index, "weight": weight, "evidence": evidence, "sharpness": hp.sharpness}


def _choose_ngrams(
    bucket: np.ndarray, label: np.ndarray, prior: np.ndarray, hp: Hyperparameters
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the table row of each bucket (or -1), and of each table row the weight and the evidence for each class.

    The weight of an n-gram is what it tells of the class: the divergence of the class shares among
    the texts that have it from those of all texts, a few texts of prior mixed in. It was better
    than IDF by half a point. The evidence is naive Bayes's: how far the n-gram moves each class's log-odds.
    `max_rows` keeps what tells most over all texts. Rows go from the highest weight to the lowest,
    so that what does not fit into the width is what tells least.
    """
    frequency = np.bincount(bucket, minlength=2**hp.hash_bits)
    kept = np.flatnonzero(frequency >= hp.min_count)
    index = np.full(2**hp.hash_bits, -1, np.int32)
    index[kept] = np.arange(len(kept))
    known = index[bucket] >= 0
    counts = np.bincount(index[bucket][known] * len(prior) + label[known], minlength=len(kept) * len(prior))
    share = counts.reshape(len(kept), len(prior)) + hp.smoothing * prior
    share /= share.sum(1, keepdims=True)
    weight = (share * np.log(share / prior)).sum(1) / np.log(max(2, len(prior)))
    evidence = _log_odds(share) - _log_odds(prior)
    order = np.sort(np.argsort(-weight * frequency[kept], kind="stable")[: hp.max_rows])
    order = order[np.argsort(-weight[order], kind="stable")]
    index[:] = -1
    index[kept[order]] = np.arange(len(order))
    if not len(order):  # nothing is common to two texts: one row that says nothing stands for all
        return index, np.zeros(1, np.float32), np.zeros((1, len(prior)), np.float32)
    return index, weight[order].astype(np.float32), evidence[order].astype(np.float32)


def _log_odds(share: np.ndarray) -> np.ndarray:
    return np.log(share / np.maximum(1.0 - share, 1e-9))  # of a class that all texts have: large, not infinite


def _measure(text: tf.Tensor, hp: Hyperparameters) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return text numbers and buckets of all distinct n-grams, and how many each text has per group."""
    text = _clean(text, hp)
    if hp.model == "cnn":
        none = tf.zeros([0], tf.int64)
        return none, none, _word_ids(text, hp).row_lengths()[None]
    found = [_distinct(*group)[:2] for group in _ngram_groups(text, hp)]
    lengths = [tf.math.bincount(tf.cast(row, tf.int32), minlength=tf.size(text)) for row, _ in found]
    return tf.concat([row for row, _ in found], 0), tf.concat([bucket for _, bucket in found], 0), tf.stack(lengths)
