"""What a model costs and what it is worth: size, accuracy, complexity, latency, hardware."""
