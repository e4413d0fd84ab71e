"""The profile that a sweep was submitted with last, for commands that name none.

Each intent in the ledger has it. The ledger lies in a work root that the profile may name, so the
default work root keeps a list of those that a sweep was submitted in: roots.json.
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
    """The cluster as it was asked last, and lines for the user about what differs since."""

    cluster: Cluster
    notes: tuple[str, ...] = ()


def profile_json(cluster: Cluster) -> dict[str, Any]:
    """What an intent says of its profile: where it is, and what it said, `settings` included."""
    return {
        "name": cluster.name,
        "source": cluster.source,
        "settings": list(cluster.settings),
        "values": _values(cluster.profile),
    }


def remember(sweep: Sweep, work: paths.Work) -> None:
    """That the sweep is about to be submitted in this work root; with the lock of its ledger."""
    home = _home().sweep(sweep.name)
    if home.folder == work.sweep(sweep.name).folder:
        _add(home, work.root, is_home=True)
        return
    with ledger.locked(home):  # who has this lock waits for no other
        _add(home, work.root, is_home=False)


def _add(home: paths.SweepPaths, root: Path, is_home: bool) -> None:
    roots = _roots(home)
    if (roots[-1:] or ([str(root)] if is_home else [])) != [str(root)]:
        others = [other for other in roots if other != str(root)]
        store.publish_json(home.roots, [*others, str(root)])


def last(sweep: Sweep, settings: Sequence[str] = ()) -> Submitted | None:
    """The profile of the sweep's last submission that was not refused, with these settings on top
    of its own; None where there was none.

    The profile's file counts as it is now, but for the work root: with another one, nothing that
    was submitted would be found again.
    """
    said = _last_profile(sweep)
    if said is None:
        return None
    name, source = said["name"], said["source"]
    before = _profile(said, sweep)
    notes = list(_other_profile(sweep, said))
    if profile.file_of(source) is None:
        notes.append(f"profile {source} is gone; it counts as it was when {sweep.name} was sent")
        cluster = Cluster(name, before, source, tuple(said["settings"]))
    else:
        cluster = profile.load(source, said["settings"])
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
        if not os.access(place.ledger, os.R_OK):  # removed since, or another user's
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
        found = json.loads(home.roots.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(root, str) for root in found):
        raise UserError(
            f"{home.roots}: damaged; expected a JSON list of work roots, such as "
            '["/scratch/me/netpress"]'
        )
    return found


def _profile(said: Mapping[str, Any], sweep: Sweep) -> Profile:
    """The recorded values as a profile; those that this version does not know raise UserError."""
    where = Path(f"profile {said['name']} as {sweep.name} was submitted")
    return Document(where, "", said["values"], {(): 1}).check((), Profile, said["values"])


def _values(asked: Profile) -> dict[str, Any]:
    return asked.model_dump(mode="json", exclude_defaults=True)


def _other_profile(sweep: Sweep, said: Mapping[str, Any]) -> Iterator[str]:
    """A line where the sweep, or the environment, names another one."""
    other = sweep.profile or os.environ.get("NETPRESS_PROFILE")
    path = profile.file_of(other) if other else None
    if path is not None and profile.source_of(path) != said["source"]:
        yield (
            f"{sweep.name} was submitted with profile {said['name']}, which is used again; "
            f"--profile {other} takes the other one"
        )


def _changes(before: Profile, now: Profile) -> Iterator[str]:
    """`partition 'cpu', was 'gpu'` for each key that differs."""
    for key in Profile.model_fields:
        old, new = getattr(before, key), getattr(now, key)
        if old != new:
            kept = " (the work root stays what it was; --profile takes the new one)"
            yield f"{key} {_shown(new)}, was {_shown(old)}{kept * (key == 'work')}"


def _shown(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return "nothing" if value is None else shown(value)
