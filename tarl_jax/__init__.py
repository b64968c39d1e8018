"""TARL in JAX: reinforcement learning for interactive tool-use agents (arXiv 2509.14480)."""

__version__ = "0.1.0"
