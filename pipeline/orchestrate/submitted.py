"""The profile with which a sweep was last submitted, for commands that name none.

Each intent in the ledger contains it. The ledger is in a work root that the profile may name, so
the default work root has a list of the work roots that a sweep was submitted in: roots.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import paths, store
from pipeline.errors import UserError
from pipeline.orchestrate import ledger, profile
from pipeline.orchestrate.profile import Cluster, Profile
from pipeline.strict_yaml import Document, shown
from pipeline.sweep import Sweep


@dataclass(frozen=True)
class Submitted:
    """The cluster of the last submission, and lines for the user about changes since."""

    cluster: Cluster
    notes: tuple[str, ...] = ()


def profile_json(cluster: Cluster) -> dict[str, Any]:
    """The record of a profile in an intent: its source and its values, `settings` included."""
    return {
        "name": cluster.name,
        "source": cluster.source,
        "settings": list(cluster.settings),
        "values": _values(cluster.profile),
    }


def cluster_of(recorded: Mapping[str, Any], sweep: Sweep) -> Cluster:
    """The cluster with the values of a record, whatever its file contains now."""
    settings = tuple(recorded["settings"])
    return Cluster(recorded["name"], _profile(recorded, sweep), recorded["source"], settings)


def remember(sweep: Sweep, work: paths.Work) -> None:
    """Record that the sweep is submitted in this work root; with the lock of its ledger held."""
    home = _home().sweep(sweep.name)
    if home.folder == work.sweep(sweep.name).folder:
        _add(home, work.root, is_home=True)
        return
    with ledger.locked(home):  # a holder of this lock waits for no other
        _add(home, work.root, is_home=False)


def _add(home: paths.SweepPaths, root: Path, is_home: bool) -> None:
    roots = _roots(home)
    if (roots[-1:] or ([str(root)] if is_home else [])) != [str(root)]:
        others = [other for other in roots if other != str(root)]
        store.publish_json(home.roots, [*others, str(root)])


def last(sweep: Sweep, settings: Sequence[str] = ()) -> Submitted | None:
    """The profile of the sweep's last submission that was not refused, with these settings added to
    its own; None where there was none.

    The present contents of the profile's file are used, except for the work root: in another one,
    earlier submissions would not be found.
    """
    recorded = _last_profile(sweep)
    if recorded is None:
        return None
    name, source = recorded["name"], recorded["source"]
    before = _profile(recorded, sweep)
    notes = list(_other_profile(sweep, recorded))
    if profile.file_of(source) is None:
        notes.append(
            f"profile {source} is gone; using it as it was when {sweep.name} was submitted"
        )
        cluster = Cluster(name, before, source, tuple(recorded["settings"]))
    else:
        cluster = profile.load(source, recorded["settings"])
        if changes := list(_changes(before, cluster.profile)):
            notes.append(
                f"profile {name} has changed since {sweep.name} was submitted: {'; '.join(changes)}"
            )
            kept = cluster.profile.model_copy(update={"work": before.work})
            cluster = replace(cluster, profile=kept)
    return Submitted(profile.with_settings(cluster, settings), tuple(notes))


def _last_profile(sweep: Sweep) -> Mapping[str, Any] | None:
    home = _home()
    for root in dict.fromkeys([*reversed(_roots(home.sweep(sweep.name))), str(home.root)]):
        place = paths.Work(Path(root)).sweep(sweep.name)
        if not os.access(place.ledger, os.R_OK):  # deleted since, or another user's
            continue
        for entry in reversed(ledger.read(place).entries.values()):
            if entry.ended is None:
                return entry.profile
    return None


def _home() -> paths.Work:
    return paths.Work(paths.work_root())


def _roots(home: paths.SweepPaths) -> list[str]:
    if not os.access(home.roots, os.R_OK):
        return []
    try:
        roots = json.loads(home.roots.read_bytes())
    except (ValueError, RecursionError):
        roots = None
    if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
        raise UserError(
            f"{home.roots}: damaged; expected a JSON list of work roots, such as "
            '["/scratch/me/netpress"]'
        )
    return roots


def _profile(recorded: Mapping[str, Any], sweep: Sweep) -> Profile:
    """The recorded values as a profile; raises UserError for values that this version does not
    know."""
    where = Path(f"profile {recorded['name']} as {sweep.name} was submitted")
    return Document(where, "", recorded["values"], {(): 1}).check((), Profile, recorded["values"])


def _values(cluster_profile: Profile) -> dict[str, Any]:
    return cluster_profile.model_dump(mode="json", exclude_defaults=True)


def _other_profile(sweep: Sweep, recorded: Mapping[str, Any]) -> Iterator[str]:
    """A line where the sweep file or the environment names another profile."""
    other = sweep.profile or os.environ.get("NETPRESS_PROFILE")
    path = profile.file_of(other) if other else None
    if path is not None and profile.source_of(path) != recorded["source"]:
        yield (
            f"{sweep.name} was submitted with profile {recorded['name']}, which is used again; "
            f"--profile {other} selects the other one"
        )


def _changes(before: Profile, now: Profile) -> Iterator[str]:
    """`partition 'cpu', was 'gpu'` for each key that differs."""
    for key in Profile.model_fields:
        old, new = getattr(before, key), getattr(now, key)
        if old != new:
            kept = " (the work root stays the same; --profile selects the new one)"
            yield f"{key} {_shown(new)}, was {_shown(old)}{kept * (key == 'work')}"


def _shown(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return "nothing" if value is None else shown(value)
