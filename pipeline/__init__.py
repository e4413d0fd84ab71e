"""netpress: how small and how fast can a neural network become before it gets worse?"""

import os

__version__ = "0.1.0"

# ONNX Runtime reads this as it is loaded. Left alone it gives the user's machine an id, keeps
# records of what was run in ~/.cache/Microsoft, and sends them home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
