"""The filter language of list calls: its grammar as AIP-160 has it, what it compares, and that no text takes long to read."""

from __future__ import annotations

import sys

import pytest

from vertex_local.serve import filters

ITEM = {
    "displayName": "x y", "state": "JOB_STATE_FAILED", "createTime": "2026-01-31T10:00:00.500000Z", "n": 7, "replicaCount": "12",
    "labels": {"a": "b", "stage": "dev", "ml.googleapis.com/trial_id": "3"}, "aliases": ["default", "old"], "done": True,
    "error": {"code": 5, "message": "no luck"}, "deployedModels": [{"id": "1"}, {"id": "2", "model": "m"}],
}  # fmt: skip


def accepts(text: str) -> bool:
    return filters.parse(text, filters.lookup)(ITEM)


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "state=JOB_STATE_FAILED", 'display_name="x y"', "displayName='x y'", "error.code=5 error.message:LUCK", "n!=6 n>6",
        "-state=OTHER", "NOT state=OTHER", "- (state=OTHER OR n=8)", "NOT (n=8 AND n=7)", "n>-5", "n>=7.0 AND n<70",
        "replica_count>9", "done=true", "labels.stage=dev", "labels:stage", "labels.a:*", 'labels."ml.googleapis.com/trial_id"=3',
        'labels."ml.googleapis.com/trial_id"="3"', "labels.ml.googleapis.com/trial_id=3", 'labels:"ml.googleapis.com/trial_id"',
        "aliases:old", "deployed_models.id:2", "deployed_models.model=m", "state=(JOB_STATE_RUNNING OR JOB_STATE_FAILED)",
        'labels.a = ("c" OR NOT "d")', "n=(-7 OR (7 AND 7))", "missing!=1", 'display_name="x y"AND(n=7)',
        'create_time>"2026-01-31T10:00:00Z"', 'create_time<"2026-01-31T10:00:00.6Z"', 'create_time="2026-01-31T12:00:00.5+02:00"',
    ],
)  # fmt: skip
def test_what_passes(text):
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "state=OTHER", "-state=JOB_STATE_FAILED", "n>70", "n<7", "labels.c:*", "labels:c", "aliases:ol", "deployed_models.id:3",
        "missing=1", "missing:*", "missing<1", "state=(A OR B)", 'create_time<"2026-01-31T10:00:00.5Z"', "replica_count<9",
    ],
)  # fmt: skip
def test_what_does_not(text):
    assert not accepts(text)


def test_or_binds_tighter_than_and():
    """`a AND b OR c` is `a AND (b OR c)`, also where nothing stands between two terms."""
    assert not accepts("n=8 AND n=8 OR n=7")
    assert not accepts("n=7 OR n=7 AND n=8")
    assert not accepts("n=8 n=8 OR n=7")
    assert accepts("n=7 AND n=8 OR n=7")
    assert accepts("n=8 OR n=7 AND n=7 OR n=9")
    assert accepts("(n=8 AND n=8) OR n=7")


@pytest.mark.parametrize(
    "text, says",
    [
        ("state", "something like"), ("state=", "something like"), ("=x", "something like"), ("(state=GOOD", "not closed"),
        ("state=GOOD)", "needs AND or OR"), ('a="', "cannot be read"), ("a=b AND", "nothing"), ("OR a=b", "something like"),
        ("a=b OR", "nothing"), ("a=b OR AND c=d", "something like"), ("hasPrefix(a, b)", "functions"), ("a=cat(b)", "functions"),
        ("a=(b", "not closed"), ("a=(b OR", "something like"), ("(" * 51 + "a=b" + ")" * 51, "50 parentheses"),
        ("a=" + "(" * 51 + "b" + ")" * 51, "50 parentheses"), ("NOT NOT a=b", "something like"), ("x" * 20_001, "20,000 characters"),
    ],
)  # fmt: skip
def test_what_is_no_filter(text, says):
    with pytest.raises(filters.FilterError, match=says):
        accepts(text)


def test_what_a_filter_asks_for_can_be_known_beforehand():
    known = filters.parse('state=A AND (resource.labels.job_id="1" OR resource.labels.job_id="2") AND n>1', filters.lookup)
    assert known.values("state") == {"A"} and known.values("resource.labels.jobId") == {"1", "2"} and known.values("n") is None
    assert filters.parse("state=A OR n=1", filters.lookup).values("state") is None
    assert filters.parse("NOT state=A", filters.lookup).values("state") is None
    bound = '((timestamp="2026-01-31T10:00:00Z" AND insertId>"x") OR timestamp>"2026-01-31T11:00:00Z")'
    assert filters.parse(f"a=b AND {bound}", filters.lookup).least("timestamp") == "2026-01-31T10:00:00Z"
    assert filters.parse('timestamp<"2026-01-31T10:00:00Z"', filters.lookup).least("timestamp") is None


@pytest.mark.parametrize("piece", ["a=b ", "(a=b) ", '"\\"', "-", "NOT ", " ", "a.b.", '"x".', "a=(b OR c) ", "a=b OR ", "\\", "'", "a:"])
def test_reading_takes_steps_in_proportion_to_the_text(piece):
    """Counted in calls, not by a clock: twice the text makes at most about twice the calls."""
    def calls(times: int) -> int:
        count = 0

        def note(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            accepts(piece * times)
        except filters.FilterError:
            pass
        finally:
            sys.setprofile(None)
        return count

    once = calls(1000 // len(piece))
    assert calls(2000 // len(piece)) <= 2.2 * once + 50


def test_functions_that_a_list_names():
    def look(item, name):
        return item.get(name)

    text = 'in_context("a/b") AND (kind=x OR kind=y)'
    accepts = filters.parse(text, look, ["in_context"])
    assert accepts({"in_context": ["a/b", "c"], "kind": "y"}) and not accepts({"in_context": ["c"], "kind": "y"})
    assert not accepts({"kind": "x"}) and accepts.values("inContext") == {"a/b"}, "what an index can find"
    assert filters.parse("NOT in_context('a')", look, ["in_context"])({"in_context": ["b"]})
    assert filters.parse('parent_contexts:"a"', filters.lookup).values("parentContexts") == {"a"}
    for wrong in ('in_context("a"', "in_context()", "in_context", 'other("a")'):
        with pytest.raises(filters.FilterError):
            filters.parse(wrong, look, ["in_context"])


def test_names_and_values_in_quotes_are_the_texts_in_them():
    item = {"a": {"b c": {"d": "AND"}}, "AND": "x", "labels": {"it's": "y"}}
    for text in ('a."b c".d=AND', '"a"."b c".d="AND"', '"AND"=x', 'labels."it\\\'s"=y', "labels.'it\\'s'='y'"):
        assert filters.parse(text, filters.lookup)(item), text
