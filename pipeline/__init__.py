"""netpress: how small and how fast can a neural network become before it gets worse?"""

__version__ = "0.1.0"
