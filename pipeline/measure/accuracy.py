"""What follows from the predictions of a model and its base."""

from __future__ import annotations

import numpy as np


def of_predictions(own: np.ndarray, base: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Classes [N] each -> shares of the N images (0..1)."""
    accuracy, base_accuracy = float(np.mean(own == labels)), float(np.mean(base == labels))
    return {
        "accuracy": accuracy,
        "base_accuracy": base_accuracy,
        "accuracy_drop": base_accuracy - accuracy,
        "agreement": float(np.mean(own == base)),
    }
