"""A command, and what it took: its CPU seconds and peak memory, as JSON in a file.

    python measured.py FILE COMMAND ...

Linux counts the memory of the process that a command was started from as its own, until it has
more; so it is started from this small one, not from pytest.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

file, *command = sys.argv[1:]
code = subprocess.run([sys.executable, *command]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
Path(file).write_text(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": peak}))
sys.exit(code)
