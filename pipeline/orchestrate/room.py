"""How many more jobs this user may submit now: by the limits of the association and of the QOS.

Slurm counts each task of an array. What is used of a limit is read from the controller, which
counts jobs of all sweeps, and all other jobs of the user. Limits that cannot be read there show
when sbatch refuses an array: see send.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.orchestrate import slurm
from pipeline.orchestrate.profile import Profile

LEAST = 3  # tasks that a limit must allow for a follow-up job: itself, the report, one of cells


@dataclass(frozen=True)
class Limit:
    """A limit on submitted jobs: `most` of them, `used` by jobs that are in the queue now."""

    name: str
    most: int
    used: int

    @property
    def room(self) -> int:
        return max(0, self.most - self.used)

    @property
    def allows_follow_up(self) -> bool:
        return self.most >= LEAST

    @property
    def line(self) -> str:
        return f"{self.name} is {self.most}, {self.used} of it used"


def tightest(profile: Profile) -> Limit | None:
    """The limit that leaves the least room for jobs of this profile; None where none is known."""
    try:
        text = slurm.usage_of_limits()
        default = slurm.partition(None if profile.partition is None else first(profile.partition))
    except UserError:  # not shown to users here, or no controller: sbatch will report it
        return None
    records = text.splitlines()
    own = list(_own(records, profile.account))
    qos = profile.qos or _default_qos(profile.account, own)
    limits = [limit for line in _lineage(records, own) for limit in _of_association(line)]
    by_kind: dict[str, Limit] = {}
    for name in (qos, default.get("QoS")):  # what the partition's QOS has stands above the job's
        if name and name != "N/A":
            by_kind |= {limit.name.partition(" ")[0]: limit for limit in _of_qos(records, name)}
    limits += by_kind.values()
    return min(limits, key=lambda limit: limit.room, default=None)


def consequence(limit: Limit | None, profile: Profile) -> str:
    """What a limit means for a sweep, for `netpress doctor`."""
    if limit is None:
        return "no limit on submitted jobs was found"
    if profile.follow_up is None or not limit.allows_follow_up:
        rest = "each call of `netpress submit` sends what there is room for"
    else:
        minutes = profile.follow_up.every_s / 60
        rest = f"a job that looks every {minutes:.3g} minutes submits the rest of a larger sweep"
    return f"{limit.line}, tasks of arrays counted one by one; {rest}"


def first(names: str) -> str:
    return names.partition(",")[0]


def _default_qos(account: str | None, own: Iterable[str]) -> str | None:
    """The QOS of jobs that name none; the controller does not show it."""
    account = account or next((_name(line, "Account") for line in own), None)
    try:
        lines = slurm.associations()
    except UserError:
        return None
    for line in lines:
        match = re.search(r"\bDefaultQOS ([^,]+)", line)
        if match and line.startswith(f"Account {account},"):
            return match[1]
    return None


def _own(records: Iterable[str], account: str | None) -> Iterator[str]:
    """The user's association with the account that jobs are charged to."""
    for line in records:
        if line.startswith("ClusterName=") and re.search(r" UserName=[^ ]", line):
            default = re.search(r" DefAssoc=Yes", line)
            if _name(line, "Account") == account if account else default:
                yield line


def _lineage(records: list[str], own: Iterable[str]) -> Iterator[str]:
    """The user's associations and those of their accounts, up to the root."""
    accounts = {}
    for line in records:
        if line.startswith("ClusterName=") and " UserName= " in line:
            accounts[_name(line, "Account")] = line
    for association in own:
        yield association
        seen, name = set(), _name(association, "Account")
        while name in accounts and name not in seen:
            seen.add(name)
            yield accounts[name]
            name = _name(accounts[name], "ParentAccount")


def _of_association(line: str) -> Iterator[Limit]:
    who = "the association of account " + (_name(line, "Account") or "?")
    own = bool(re.search(r" UserName=[^ ]", line))
    for key in ("MaxSubmitJobs", "GrpSubmitJobs") if own else ("GrpSubmitJobs",):
        yield from _limit(line, key, f"{key} of {who}")


def _of_qos(records: Iterable[str], name: str) -> Iterator[Limit]:
    line = next((s for s in records if re.match(rf"QOS={re.escape(name)}\(", s)), None)
    if line is None:
        return
    yield from _limit(line.partition(" Account Limits=")[0], "GrpSubmitJobs", _of(name, "Grp"))
    users = line.partition(" User Limits=")[2]  # `0={...}`, in some versions `root(0)={...}`
    mine = re.search(rf"(?:^| )(?:[^ (]+\()?{os.getuid()}\)?={{([^}}]*)}}", users)
    if mine:
        yield from _limit(mine[1], "MaxSubmitJobsPU", _of(name, "PerUser"))
    else:  # nothing of it is used, so the controller does not list it
        yield from _of_accounting(name)


def _of(qos: str, kind: str) -> str:
    names = {"Grp": "GrpSubmitJobs", "PerUser": "MaxSubmitJobsPerUser"}
    return f"{names[kind]} of QOS {qos}"


def _of_accounting(name: str) -> Iterator[Limit]:
    try:
        lines = slurm.qualities([name])
    except UserError:
        return
    for line in lines:
        if match := re.search(r"MaxSubmitPU (\d+)", line):
            yield Limit(_of(name, "PerUser"), int(match[1]), 0)


def _limit(text: str, key: str, name: str) -> Iterator[Limit]:
    """`MaxSubmitJobs=4(2)`: at most 4, 2 of them in use; `N(2)` and nothing are no limit."""
    if match := re.search(rf"\b{key}=(\d+)\((\d+)\)", text):
        yield Limit(name, int(match[1]), int(match[2]))


def _name(line: str, key: str) -> str | None:
    """The value of `KEY=name(number)` or `KEY=name`."""
    match = re.search(rf"\b{key}=([^ (]+)", line)
    return match[1] if match else None
