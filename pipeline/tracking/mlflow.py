"""MLflow: the server that MLFLOW_TRACKING_URI names, else WORK/tracking/mlflow/mlflow.db.

A run is found again by the tag netpress.cell, so that a cell that is resumed goes on in its own.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from typing import Any

from pipeline.tracking import Run

PACKAGE = "mlflow"
TAG = "netpress.cell"
REPORT = "netpress.report"  # of a run that a report writes: BEGUN, until all is in it
BEGUN, COMPLETE = "begun", "complete"
PAUSES_S = (1.0, 3.0, 9.0)
LONGEST = 500  # characters of a parameter that every version takes


def start(run: Run) -> Mlflow:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(run)
    for pause_s in PAUSES_S:  # cells that start together make the same tables, and experiment
        try:
            return Mlflow(run, uri)
        except ImportError:
            raise
        except Exception:  # of the server, of the database: MLflow has no one type for it
            time.sleep(pause_s)
    return Mlflow(run, uri)


def local_uri(run: Run) -> str:
    return f"sqlite:///{run.folder / 'mlflow.db'}"


class Mlflow:
    """One run. `of_report`: what a report writes at once, and calls `complete` then; one that it
    began and did not complete is deleted, since nobody knows how much is in it."""

    def __init__(self, run: Run, uri: str, of_report: bool = False):
        package: Any = importlib.import_module("mlflow")
        run.folder.mkdir(parents=True, exist_ok=True)
        self.entities: Any = package.entities
        self.client: Any = package.MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name(run.sweep)
        own = experiment.experiment_id if experiment else self.client.create_experiment(run.sweep)
        runs = self.client.search_runs([own], filter_string=f"tags.`{TAG}` = '{run.id}'")
        if of_report:
            left = [one for one in runs if one.data.tags.get(REPORT) == BEGUN]
            for one in left:
                self.client.delete_run(one.info.run_id)
            runs = [one for one in runs if one not in left]
        self.is_new = not runs
        if runs:
            self.run = runs[0].info.run_id
            return
        tags = {TAG: run.id, **({REPORT: BEGUN} if of_report else {})}
        made = self.client.create_run(own, run_name=run.name, tags=tags)
        self.run = made.info.run_id
        params = [self.entities.Param(k, v[:LONGEST]) for k, v in run.settings.items()]
        for first in range(0, len(params), 100):  # the most that one call takes
            self.client.log_batch(self.run, params=params[first : first + 100])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self.entities.Metric(key, v, now_ms, step) for key, v in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def complete(self) -> None:
        self.client.set_tag(self.run, REPORT, COMPLETE)

    def close(self) -> None:
        self.client.set_terminated(self.run)
