"""A report over thousands of results: what it does for each, and the CPU and memory of all its
processes together.

tests/benchmarks/bench_report.py measures seconds and bytes for 10,000. Here are 500 and 1,000,
between which figures show no more (their seeds are at most five): time grows as the results do, and
the memory of one more result is taken for all of 10,000.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

import psutil
import pytest

from pipeline.paths import CODE, Work, report
from pipeline.report import frames, reading
from tests import cost, many

MOST_BYTES, RESULTS = 1_000_000_000, 10_000
# A result of tests/many.py has 39 numbers and arrays under what was measured, and 2 stages.
VALUES, MOST_CALLS = 41, 3200
BUILD = """
import sys
from pathlib import Path

from pipeline import hardware, report
from pipeline.paths import Work
from pipeline.report import chunks
from tests import many

count, folder, out = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
hardware.cores, chunks.WORTH_PROCESSES = lambda: 2, 1
paths, listed = report.build(many.sweep(count), Work(folder / "work"), out)
assert len(listed.rows) == count and not listed.gaps
"""


@dataclass(frozen=True)
class Took:
    cpu_s: float
    wall_s: float
    peak_bytes: int


def built(count, folder, out) -> Took:
    """A report by a process of its own; memory is that of it and all below it at one time."""
    command = [sys.executable, "-c", BUILD, *map(str, (count, folder, out))]
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(command, env=environment, cwd=CODE)
    while True:
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        peak = max(peak, _memory_bytes(process.pid))
        time.sleep(0.5)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Took(used.ru_utime + used.ru_stime, time.monotonic() - began, peak)


def _memory_bytes(pid: int) -> int:
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended meanwhile
            continue
    return total


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    many.publish(many.sweep(1000), Work(folder / "work"))
    return folder


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_report_costs_grows_as_its_results_do(folder, tmp_path):
    few, more = (built(count, folder, tmp_path / str(count)) for count in (500, 1000))
    each_s, each_bytes = (more.cpu_s - few.cpu_s) / 500, (more.peak_bytes - few.peak_bytes) / 500
    costs = f"{each_s * 1e3:.1f} ms, {each_bytes / 1e3:.0f} kB a result; {few}; {more}"
    assert more.cpu_s < 2.5 * few.cpu_s, costs  # twice the results; times are in bench_report
    assert more.peak_bytes + each_bytes * (RESULTS - 1000) < MOST_BYTES, costs
    with open(report("many", tmp_path / "1000").csv) as file:
        assert len(list(csv.reader(file))) == 1001


def test_each_value_of_a_result_is_read_once_and_from_its_bytes(folder):
    """And so are its file and its links, and no dataset is opened: a report costs what it does for
    each result."""
    sweep, work = many.sweep(1000), Work(folder / "work")
    cells = [frames.request(cell, work) for cell in frames.in_order(sweep)]

    def calls(count: int) -> Counter[str]:
        reading.read_chunk_merged(cells[:1])  # imports, and what is remembered
        return cost.calls(lambda: reading.read_chunk_merged(cells[:count]))

    few, more = calls(10), calls(20)
    a_result = Counter({name: (more[name] - few[name]) / 10 for name in more})
    assert a_result["read_patiently"] == 2  # the manifest is one
    assert a_result["contiguous"] == VALUES and a_result["_check_stored"] == 0
    assert a_result["_inside"] == 1  # visits the links
    assert a_result["openssl_sha256"] <= 6  # seals of result and manifest, result, three arrays
    assert sum(a_result.values()) < MOST_CALLS, sum(a_result.values())
