"""What all tests share: no settings of the person who runs them, and no clocks on properties."""

from __future__ import annotations

import os

from hypothesis import settings

for name in [name for name in os.environ if name.startswith("NETPRESS_")]:
    del os.environ[name]  # before anything is collected: no test may touch the user's work root

settings.register_profile("netpress", deadline=None)  # a busy machine is no failure
settings.load_profile("netpress")
