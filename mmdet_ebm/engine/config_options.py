"""Changes to a config on a command line."""

import os
from typing import Any

from mmengine.config import DictAction


class ConfigOptions(DictAction):
    """``DictAction`` that leaves paths as they are.

    mmengine takes spaces out of a value and splits it at commas. A value with
    a slash that leads to a file or folder is a path and not a list.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if '/' in val and os.path.exists(val):
            return val
        return DictAction._parse_iterable(val)
