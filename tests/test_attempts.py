"""What an attempt leaves of itself: failure.json and usage.json, sound and damaged."""

from __future__ import annotations

import json

import pytest

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.orchestrate import in_job
from pipeline.paths import Work

FAILURE = store.Failure("out_of_memory", "RuntimeError:\n no memory", "Traceback ...")
USAGE = store.Usage(
    job="12_3",
    host="node-1",
    started="2026-01-31T12:00:00Z",
    ended=None,
    wall_s=12,
    training_s=3.5,
    epochs=2,
    requested=store.Requested(24, 40 << 30, 1),
    used=store.Peaks(3 << 30, 2.5, 0, None),
)


@pytest.fixture
def attempt(tmp_path):
    return store.new_attempt(Work(tmp_path).cell("0" * 16), "12_3")


def test_a_failure_is_read_as_it_was_written(attempt):
    assert store.read_failure(attempt) is None
    store.write_failure(attempt, FAILURE)
    assert store.read_failure(attempt) == FAILURE
    assert set(json.loads(attempt.failure.read_bytes())) == {"kind", "reason", "traceback"}
    on_a_node = store.Failure("node_failure", "node n1 failed", node="n1")
    store.write_failure(attempt, on_a_node)
    assert store.read_failure(attempt) == on_a_node
    assert json.loads(attempt.failure.read_bytes())["node"] == "n1"


def test_a_failure_is_one_line_with_its_kind_once():
    assert FAILURE.line == "out of memory: RuntimeError: no memory"
    assert store.Failure("time_limit", "time limit: too long").line == "time limit: too long"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"kind": "x"}', '{"kind": 1, "reason": "y"}']
)
def test_a_damaged_failure_is_named_and_usage_becomes_unknown(attempt, text):
    attempt.failure.write_text(text)
    with pytest.raises(Corrupt, match=r"failure\.json"):
        store.read_failure(attempt)
    assert in_job.failure_of(attempt) is None
    attempt.usage.write_text(text)
    assert store.read_usage(attempt) == store.Usage(None)


def test_usage_is_read_as_it_was_written_under_the_keys_that_stay(attempt):
    assert store.read_usage(attempt) == store.Usage("12_3")
    store.write_usage(attempt, USAGE)
    assert store.read_usage(attempt) == USAGE
    assert json.loads(attempt.usage.read_bytes()) == {
        "job": "12_3",
        "host": "node-1",
        "started": "2026-01-31T12:00:00Z",
        "ended": None,
        "wall_s": 12,
        "training_s": 3.5,
        "epochs": 2,
        "request": {"cores": 24, "memory_bytes": 40 << 30, "gpus": 1},
        "used": {
            "memory_bytes": 3 << 30,
            "cores": 2.5,
            "gpu_memory_bytes": 0,
            "gpu_busy": None,
        },
    }
    earlier = USAGE.to_json()
    earlier["asked"] = earlier.pop("request")
    attempt.usage.write_text(json.dumps(earlier))
    assert store.read_usage(attempt) == USAGE
    attempt.usage.unlink()
    assert store.read_usage(attempt) is None


def test_a_damaged_value_of_usage_costs_that_value_alone(attempt):
    values = USAGE.to_json()
    broken = {**values, "wall_s": "long", "epochs": float("nan"), "started": 7, "used": {}}
    attempt.usage.write_text(json.dumps(broken))
    usage = store.read_usage(attempt)
    assert usage.job == "12_3" and usage.requested == USAGE.requested and usage.training_s == 3.5
    assert (usage.wall_s, usage.epochs, usage.started, usage.used) == (None, None, None, None)
    assert in_job.job_of(attempt) == "12_3"
