"""What a run shows: a few lines of its own, progress, warnings and errors.

mmengine's banners, configs and lists go to its log file alone, which holds
the same as ever.
"""

import builtins
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.logging import logger as mmengine_logger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from pycocotools import coco, cocoeval

from .progress_hook import ProgressHook, say

# Packages that log for those who look into the log file.
_HOSTS = ('mmengine', 'mmdet', 'mmcv')
# Their warnings that a user can do nothing about: of mmengine's own checkpoint
# hook, of its optimiser about a detector that is frozen on purpose, and of the
# metric behind --out, which measures nothing.
_KNOWN_WARNINGS = re.compile(
    r'"FileClient" will be deprecated'
    r'|"HardDiskBackend" is the alias of "LocalBackend"'
    r'|\S+ is skipped since its requires_grad=False'
    r'|The prefix is not set in metric class DumpDetResults'
)
# What they print: pycocotools what it is doing and a table without AP90, and
# mmengine what it loads. A new energy model is in no detector's checkpoint.
_NOTICES = re.compile(
    r'loading annotations into memory|Done \(t=|DONE \(t='
    r'|creating index|index created|Loading and preparing results'
    r'|Running per image evaluation|Evaluate annotation type'
    r'|Accumulating evaluation results| Average (Precision|Recall) '
    r'|Loads checkpoint by '
    r'|The model and loaded state dict do not match exactly\s+'
    r'missing keys in source state_dict: (energy_model\.[\w.]+(, )?)+\s*$'
)


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """Build the runner of a config, which shows a few lines.

    Args:
        cfg: Config of a training or a test.
        verbose: Show all that mmengine logs, and no progress bars.
    """
    kind = cfg.get('runner_type', 'Runner')
    kind = kind if inspect.isclass(kind) else RUNNERS.get(kind)
    if verbose or kind is None:
        return RUNNERS.build(cfg)  # tells what an unknown type may be
    runner = type(kind.__name__, (_QuietLogger, kind), {}).from_cfg(cfg)
    # Later than the hooks of the config, which its log file lists.
    runner.register_hook(ProgressHook(), 'LOWEST')
    return runner


@contextmanager
def few_lines(verbose: bool = False) -> Iterator[None]:
    """Within it, mmengine and pycocotools do not show what they are doing.

    That is for what happens outside of a runner, see :func:`build_runner`.

    Args:
        verbose: Change nothing.
    """
    if verbose:
        yield
        return
    logger = MMLogger.get_current_instance()
    handlers = logger.handlers[:]
    _replace_screen(logger)
    modules = (coco, cocoeval, mmengine_logger)
    # One of these may be in another.
    usual = [vars(module).get('print', builtins.print) for module in modules]
    for module in modules:
        module.print = _print_unless_notice
    try:
        yield
    finally:
        for module, own in zip(modules, usual):
            module.print = own
        logger.handlers[:] = handlers


def _print_unless_notice(*values: object, **options) -> None:
    if not _NOTICES.match(str(values[0] if values else '')):
        builtins.print(*values, **options)


class _QuietLogger:
    """For a runner: the logger's screen is a :class:`_Screen`."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        _replace_screen(logger)
        return logger


def _replace_screen(logger: MMLogger) -> None:
    logger.handlers[:] = [
        _Screen(each) if type(each) is logging.StreamHandler else each
        for each in logger.handlers
    ]


class _Screen(logging.Handler):
    """Writes between progress bars what is for the eyes of a user.

    Args:
        replaced: The handler in whose place it is, with its level and filters.
    """

    def __init__(self, replaced: logging.Handler) -> None:
        super().__init__(replaced.level)
        self.filters = [_is_for_users, *replaced.filters]

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f'{record.levelname.lower()}: {text}'
        if record.exc_info:
            text += '\n' + ''.join(
                traceback.format_exception(*record.exc_info)
            )
        try:
            say(text)
        except OSError:
            self.handleError(record)


def _is_for_users(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        return not _KNOWN_WARNINGS.match(record.getMessage())
    return _logging_package() not in _HOSTS


def _logging_package() -> str:
    """The package that logs, also if it does so by mmengine's ``print_log``.

    A record itself names the file of ``print_log`` then.
    """
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get('__name__', '')
        if not name.startswith(('logging', 'mmengine.logging', __name__)):
            return name.partition('.')[0]
        frame = frame.f_back
    return ''
