"""Generated data sets."""

from .digits import DigitsConfig, generate_digits

__all__ = ['DigitsConfig', 'generate_digits']
