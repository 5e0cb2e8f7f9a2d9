"""Data that the project generates itself."""

from .digits import DigitsConfig, generate_digits

__all__ = ['DigitsConfig', 'generate_digits']
