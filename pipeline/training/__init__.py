"""Training: one loop for every stage, its recipe, its losses, its checkpoint."""
