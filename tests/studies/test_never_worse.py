"""What the wrong trainings are; none of them runs here."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from studies import compare_stages, never_worse


@pytest.fixture
def config(tmp_path):
    """A config with 40 annotated images."""
    boxes = [[10.0, 20, 30, 40], [50.0, 20, 20, 20]]
    content = dict(
        images=[dict(id=i) for i in range(40)],
        annotations=[
            dict(image_id=i % 40, bbox=boxes[i // 40], area=1.0)
            for i in range(80)
        ],
    )
    (tmp_path / 'train_set.json').write_text(json.dumps(content))
    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(
                    data_root=str(tmp_path),
                    ann_file='train_set.json',
                    pipeline=[dict(type='Load'), dict(type='PackDetInputs')],
                )
            ),
            train_cfg=dict(max_epochs=3, val_interval=3),
            optim_wrapper=dict(optimizer=dict(lr=0.1)),
            param_scheduler=[dict(type='LinearLR')],
            default_hooks=dict(checkpoint=dict(interval=1)),
        )
    )
    path = tmp_path / 'energy.py'
    cfg.dump(str(path))
    return path


@pytest.fixture
def trained(monkeypatch, config, tmp_path):
    """The config of each training, by case and seed."""
    found = {}

    def train_once(path, work_dir, seed, load_from, max_epochs):
        found[path.parent.name, seed] = Config.fromfile(path), max_epochs
        return work_dir / 'last.pth'

    def compare(words):
        run = [dict(AP=0.5), dict(AP=0.4)]
        interval = dict(difference=0.01, low=-0.02, high=0.03)
        metrics = dict.fromkeys(('AP', 'AP50', 'AP75', 'AP90'), interval)
        Path(words[words.index('--out') + 1]).write_text(
            json.dumps(
                dict(
                    stages=dict(
                        plain=dict(runs=run),
                        voted=dict(runs=run),
                        refined=dict(runs=run[::-1]),
                    ),
                    differences={
                        'voted - plain': metrics,
                        'refined - plain': metrics,
                    },
                )
            )
        )

    monkeypatch.setattr(never_worse, 'train_once', train_once)
    monkeypatch.setattr(compare_stages, 'main', compare)
    never_worse.main(
        [str(config), 'plain.pth', '--seeds', '3', '4', '--epochs', '2']
        + ['--work-dir', str(tmp_path / 'work')]
    )
    return found


def annotations(cfg):
    return json.loads(Path(cfg.train_dataloader.dataset.ann_file).read_text())


def test_each_case_is_wrong_in_its_own_way(trained, config):
    assert len(trained) == 5 * 2
    cfg, epochs = trained['untrained', 3]
    assert cfg.train_cfg.max_iters == 1 and epochs is None
    assert cfg.optim_wrapper.optimizer.lr == 0
    cfg, epochs = trained['20-steps', 3]
    assert cfg.train_cfg.max_iters == 20 and epochs is None
    assert cfg.optim_wrapper.optimizer.lr == 0.1
    cfg, epochs = trained['crops-cut-boxes', 3]
    steps = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert steps == ['Load', 'RandomCrop', 'PackDetInputs']
    assert cfg.keep_crops and epochs == 2


def test_noise_on_annotations_is_a_tenth_of_the_box(trained, config):
    exact = json.loads((config.parent / 'train_set.json').read_text())
    cfg, _ = trained['annotations-off-by-0.1', 3]
    before, after = (
        np.array([each['bbox'] for each in content['annotations']])
        for content in (exact, annotations(cfg))
    )
    shift = after[:, :2] + after[:, 2:] / 2 - before[:, :2] - before[:, 2:] / 2
    assert np.std(shift / before[:, 2:]) == pytest.approx(0.1, rel=0.15)
    growth = np.log(after[:, 2:] / before[:, 2:])
    assert np.std(growth) == pytest.approx(0.1, rel=0.15)


def test_few_images_are_others_for_each_seed(trained):
    first, second = (
        annotations(trained['30-images', seed][0]) for seed in (3, 4)
    )
    kept = {each['id'] for each in first['images']}
    assert len(kept) == 30
    assert {each['image_id'] for each in first['annotations']} == kept
    assert first != second


def test_figures_name_the_config_that_was_asked_for(trained, tmp_path, config):
    figures = json.loads((tmp_path / 'work/never_worse.json').read_text())
    assert {each['config'] for each in figures.values()} == {config.name}


def test_the_table_tells_every_seed(trained, tmp_path):
    lines = (tmp_path / 'work/never_worse.md').read_text().splitlines()
    assert len(lines) == 2 + 5 + 1
    cells = [cell.strip() for cell in lines[2].split('|')]
    assert cells[1:3] == ['untrained', '+1.00 [-2.00, +3.00]']
    assert cells[6] == '-10.00, +10.00'
    cells = [cell.strip() for cell in lines[-1].split('|')]
    assert cells[1] == 'votes alone' and cells[6] == '+0.00, +0.00'
