"""Imported by a config, gives all objects the same noise."""

from .processes import share_noise

share_noise()
