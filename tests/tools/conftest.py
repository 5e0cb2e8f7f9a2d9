"""Data for the tools."""

import pytest

from mmdet_ebm.datasets import DigitsConfig, generate_digits


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    config = DigitsConfig(num_images=dict(train=16, val=4, test=4))
    return generate_digits(tmp_path_factory.mktemp('digits'), config)
