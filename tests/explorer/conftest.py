"""A small model that finds something everywhere."""

import pytest
from mmengine.config import Config

from mmdet_ebm.apis import build_model
from mmdet_ebm.core import CAUTIOUS

from ..helpers import save_checkpoint, shrunk_bccd


@pytest.fixture(scope='session')
def energy_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('explored')
    config = Config.fromfile(shrunk_bccd(folder))
    config.model.energy_model.density = CAUTIOUS
    config.dump(folder / 'energy.py')
    return (
        folder / 'energy.py',
        save_checkpoint(folder / 'energy.py', folder / 'energy.pth'),
    )


@pytest.fixture(scope='session')
def model(energy_files):
    return build_model(*energy_files, 'cpu')
