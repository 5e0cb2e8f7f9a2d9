"""Running the tools, and data for them."""

import runpy
import sys

import pytest

from mmdet_ebm.datasets import DigitsConfig, generate_digits

from ..conftest import ROOT


def run_tool(monkeypatch, name, *arguments):
    """A tool as the command line runs it, without another interpreter."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'tools')  # as Python does for scripts
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
    return runpy.run_path(
        str(ROOT / 'tools' / f'{name}.py'), run_name='__main__'
    )


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    config = DigitsConfig(num_images=dict(train=16, val=4, test=4))
    return generate_digits(tmp_path_factory.mktemp('digits'), config)
