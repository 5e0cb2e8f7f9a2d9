"""Shared fixtures; models and data are in ``small_models``."""

import logging
import sys

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope


@pytest.fixture(scope='session', autouse=True)
def _quick_logs():
    """Describing the machine and formatting configs takes longer than small
    trainings do, and is for their logs."""
    patch = pytest.MonkeyPatch()
    patch.setattr('mmengine.runner.runner.collect_env', dict)
    # A fork of mmengine formats in another way, quicker.
    patch.setattr(
        'mmengine.config.config.FormatCode',
        lambda text, **_: (text, False),
        raising=False,
    )
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    init_default_scope('mmdet')


@pytest.fixture(autouse=True)
def _audible_logs():
    """Commands silence logs until their process ends.

    And runners of one config which start within a second share a logger,
    which writes to the screen of the first.
    """
    MMLogger._instance_dict.clear()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def no_map_is_small(monkeypatch):
    """Channels-last maps are pooled where they lie, however small."""
    # By its path it would be the function of that name.
    module = sys.modules['mmdet_ebm.ops.prroi_pool']
    monkeypatch.setattr(module, '_FEW_VALUES', 0)
