"""Experiments behind the figures in docs/results."""
