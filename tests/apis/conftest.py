"""A small energy model that finds something everywhere, and inputs for it."""

import pytest

from mmdet_ebm.apis import EnergyDetInferencer

from ..helpers import save_checkpoint, shrunk_bccd, write_image


@pytest.fixture(scope='session')
def energy_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('energy')
    config = shrunk_bccd(folder)
    return config, save_checkpoint(config, folder / 'energy.pth')


@pytest.fixture(scope='session')
def inferencer(energy_files):
    config, checkpoint = energy_files
    return EnergyDetInferencer(
        config, checkpoint, device='cpu', show_progress=False
    )


@pytest.fixture
def forwards(inferencer, monkeypatch):
    """Number of images of each forward pass from here on."""
    sizes = []
    test_step = inferencer.model.test_step

    def counting(data):
        sizes.append(len(data['inputs']))
        return test_step(data)

    monkeypatch.setattr(inferencer.model, 'test_step', counting)
    return sizes


@pytest.fixture
def folder(tmp_path):
    """a/x.jpg, b/x.jpg, x.png of two sizes, and one that is damaged."""
    write_image(tmp_path / 'in/a/x.jpg', seed=1)
    write_image(tmp_path / 'in/b/x.jpg', seed=2, height=64, width=48)
    write_image(tmp_path / 'in/x.jpg', seed=3)
    write_image(tmp_path / 'in/x.png', seed=4)
    (tmp_path / 'in/broken.jpg').write_text('not an image')
    return tmp_path / 'in'
