"""netpress as an ordinary user who shares this machine, after the same as ourselves.

    python as_nobody.py status SWEEP ...

The first call loads all modules, for Python itself may lie where that user cannot read.
"""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline import cli, cli_options  # noqa: E402

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    cli.main([sys.argv[1], "--help"])
    cli.main(["status", sys.argv[2]])
    cli.main(["plan", sys.argv[2], "--profile", "generic"])
    cli_options.job_functions()
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
code = cli.main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
