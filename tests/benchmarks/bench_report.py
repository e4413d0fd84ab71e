"""What a report over many results takes, on two cores: `taskset -c 0,1 python -m
tests.benchmarks.bench_report [RESULTS]`. The limit for 10,000 is 60 s and 1 GB in all.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from pipeline.paths import Work, report
from tests import cost, many
from tests.test_report_scale import built


def main(results: int = 10_000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.process_time()
        many.publish(many.sweep(results), Work(folder / "work"))
        print(f"{results} results made in {time.process_time() - began:.1f} s of CPU")
        took = built(results, folder, folder)
        print(
            f"reference loop: {cost.reference_s():.3f} s of CPU; "
            f"report: {took.wall_s:.1f} s, {took.cpu_s:.1f} s of CPU, "
            f"{took.peak_bytes / 1e6:.0f} MB at most in all processes"
        )
        for path in sorted(report("many", folder).folder.rglob("*")):
            if path.is_file():
                print(f"  {path.stat().st_size / 1e6:8.2f} MB  {path.name}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
