"""A model on a command line, and changes to its config."""

import argparse
import os
from typing import Any

from mmengine.config import DictAction


class ConfigOptions(DictAction):
    """``DictAction`` that leaves paths as they are.

    mmengine takes spaces out of a value and splits it at commas. A value with
    a slash that leads to a file or folder is a path and not a list. Where
    mmengine fails for want of an end, this says what was expected.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except RecursionError:
            parser.error(
                f'{option_string} takes numbers, words, lists and tuples, got '
                f'{" ".join(values)}. Of a dict name each entry: '
                'a.b.x=1 a.b.y=2'
            )

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if '/' in val and os.path.exists(val):
            return val
        return DictAction._parse_iterable(val)


def add_model_arguments(
    parser: argparse.ArgumentParser,
    several: bool = False,
    example: str = 'model.refinement.ascent=False',
) -> None:
    """Config, checkpoint, ``--device`` and ``--cfg-options``.

    Args:
        parser: Gets them; other positional arguments come after these two.
        several: Take ``checkpoints``, one or more.
        example: Of an option.
    """
    parser.add_argument('config', help='config file of the energy model')
    if several:
        parser.add_argument('checkpoints', nargs='+', help='its checkpoints')
    else:
        parser.add_argument('checkpoint', help='its checkpoint file')
    parser.add_argument(
        '--device', help='e.g. cuda:0 or cpu (default: a GPU if any)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help=f'override config entries, e.g. {example}',
    )
