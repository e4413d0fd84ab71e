"""From a sweep to running jobs: plan, local workers, and what is true now. Imports no torch."""
