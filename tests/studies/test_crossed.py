"""Parts of the images, and one table of all of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from studies import crossed
from tests.small_models import CONFIGS, build

CONFIG = CONFIGS / 'digits/faster-rcnn_r18-half_nce-plus_digits.py'


def images_of(path):
    content = json.loads(Path(path).read_text())
    found = {image['id'] for image in content['images']}
    assert {each['image_id'] for each in content['annotations']} <= found
    return found


def test_each_image_is_refined_by_the_model_that_did_not_see_it(
    plain, digits, monkeypatch, tmp_path
):
    data = shutil.copytree(digits, tmp_path / 'data')
    test = json.loads((data / 'annotations/test.json').read_text())
    for each in test['images']:
        each['id'] += 100
    for each in test['annotations']:
        each['image_id'] += 100
    (data / 'annotations/test.json').write_text(json.dumps(test))
    monkeypatch.setenv('DIGITS_ROOT', str(data))
    parts, trained = [], []

    def train_once(config, work_dir, seed, load_from, max_epochs):
        trained.append((work_dir.relative_to(tmp_path).as_posix(), seed))
        if seed:
            return config.with_suffix('.pth')
        cfg = Config.fromfile(config)
        parts.append(
            [
                images_of(loader.dataset.ann_file)
                for loader in (cfg.train_dataloader, cfg.test_dataloader)
            ]
        )
        torch.manual_seed(seed)
        path = config.with_suffix('.pth')
        torch.save(dict(state_dict=build(cfg.model).state_dict()), path)
        return path

    monkeypatch.setattr(crossed, 'train_once', train_once)
    words = [CONFIG, plain, '--work-dir', tmp_path, '--parts', 2]
    words += ['--seeds', 0, 7, '--resamples', 20]
    crossed.main([*map(str, words)])
    assert trained == [
        (f'part{i}/seed{seed}', seed) for i in range(2) for seed in (0, 7)
    ]
    whole = images_of(tmp_path / 'all.json')
    own = [test for _, test in parts]
    assert sum(map(len, own)) == len(whole) == 8 + 4
    assert set().union(*own) == whole
    assert all(train == whole - test for train, test in parts)
    figures = json.loads((tmp_path / 'crossed.json').read_text())
    assert figures['images'] == 12 and figures['seeds'] == [0, 7]
    assert figures['config'] == f'configs/digits/{CONFIG.name}'
    for table in (figures, figures['all_objects']):
        first, second = table['stages']['refined']['runs']
        assert first == second  # the same weights here
        assert {'refined - plain', 'refined - voted'} <= set(
            table['differences']
        )


def test_a_single_part_would_train_on_nothing(capsys):
    with pytest.raises(SystemExit):
        crossed.main([str(CONFIG), 'plain.pth', '--parts', '1'])
    assert 'expected --parts of at least 2, got 1' in capsys.readouterr().err


def test_annotations_of_joined_files_have_numbers_of_their_own():
    """But an image cannot be in two files."""
    content = dict(
        categories=[dict(id=1)],
        images=[dict(id=5)],
        annotations=[dict(id=1, image_id=5), dict(id=2, image_id=5)],
    )
    other = dict(content, images=[dict(id=6)])
    other['annotations'] = [dict(id=1, image_id=6)]
    found = crossed.joined([content, other])
    assert [each['id'] for each in found['annotations']] == [1, 2, 3]
    assert [each['id'] for each in found['images']] == [5, 6]
    assert len(content['images']) == 1
    with pytest.raises(ValueError, match='1 ids are in several'):
        crossed.joined([content, content])
