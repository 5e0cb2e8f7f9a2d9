"""The generated set: exact boxes, equal files, noise levels, COCO form."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmdet_ebm.datasets import DigitsConfig, digits, generate_digits
from mmdet_ebm.datasets.digits import (
    VISIBLE_ALPHA,
    _render_glyph,
    _split_glyphs,
)

SMALL = dict(num_images=dict(train=6, val=2, test=2))


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path):
    first = content(generate_digits(tmp_path / 'a', DigitsConfig(**SMALL)))
    second = content(generate_digits(tmp_path / 'b', DigitsConfig(**SMALL)))
    other = content(
        generate_digits(tmp_path / 'c', DigitsConfig(**SMALL, seed=1))
    )
    assert first == second
    image = next(path for path in first if path.suffix == '.png')
    assert first[image] != other[image]


def test_coco_reads_it_and_boxes_lie_inside(tmp_path):
    generate_digits(tmp_path, DigitsConfig(**SMALL))
    for split, number in SMALL['num_images'].items():
        coco = COCO(str(tmp_path / 'annotations' / f'{split}.json'))
        assert len(coco.imgs) == number and len(coco.cats) == 10
        for image in coco.imgs.values():
            pixels = cv2.imread(str(tmp_path / 'images' / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert coco.imgToAnns[image['id']]
        for ann in coco.anns.values():
            x, y, w, h = ann['bbox']
            assert min(x, y) >= 0 and min(w, h) >= 4
            assert x + w <= 160 and y + h <= 160


def test_boxes_are_exact(tmp_path, monkeypatch):
    """Redrawing with all digits invisible changes pixels inside boxes only."""
    generate_digits(tmp_path / 'a', DigitsConfig(**SMALL))
    render = digits._render_glyph

    def nearly_invisible(rng, glyph, size):
        alpha = render(rng, glyph, size)
        return np.where(alpha >= VISIBLE_ALPHA, VISIBLE_ALPHA, 0)

    monkeypatch.setattr(digits, '_render_glyph', nearly_invisible)
    generate_digits(tmp_path / 'b', DigitsConfig(**SMALL))
    coco = COCO(str(tmp_path / 'a/annotations/train.json'))
    for image in coco.imgs.values():
        a, b = (
            cv2.imread(str(tmp_path / d / 'images' / image['file_name']))
            for d in 'ab'
        )
        changed = (a != b).any(2)
        inside = np.zeros_like(changed)
        for ann in coco.imgToAnns[image['id']]:
            x, y, w, h = map(int, ann['bbox'])
            inside[y : y + h, x : x + w] = True
            # Tight: the strokes reach every side of the box.
            crop = changed[y : y + h, x : x + w]
            assert crop[:2].any() and crop[-2:].any()
            assert crop[:, :2].any() and crop[:, -2:].any()
        assert not (changed & ~inside).any()


def test_splits_share_no_glyphs_and_have_all_digits():
    splits = _split_glyphs()
    pixels = {
        split: {(image.tobytes(), label) for image, label in glyphs}
        for split, glyphs in splits.items()
    }
    assert len(set.union(*pixels.values())) == sum(map(len, pixels.values()))
    for glyphs in splits.values():
        assert {label for _, label in glyphs} == set(range(10))


def test_rendered_glyphs_are_opaque_and_clear():
    rng = np.random.default_rng(0)
    alpha = _render_glyph(rng, _split_glyphs()['train'][0][0], (40, 60))
    assert alpha.max() == 1 and alpha.min() == 0


def test_noise_levels_have_their_size_and_keep_the_images(tmp_path):
    """n = 4 x about 450 draws: the standard deviation within 5 errors."""
    config = DigitsConfig(
        num_images=dict(train=100, val=1, test=1), annotation_noise=(0.05, 0.2)
    )
    generate_digits(tmp_path, config)
    exact = COCO(str(tmp_path / 'annotations/train.json'))
    for sigma in (0.05, 0.2):
        noisy = COCO(str(tmp_path / f'annotations/train_noise-{sigma}.json'))
        assert noisy.imgs == exact.imgs
        a = np.array([ann['bbox'] for ann in exact.anns.values()])
        b = np.array([ann['bbox'] for ann in noisy.anns.values()])
        relative = np.concatenate(
            [
                (b[:, :2] + b[:, 2:] / 2 - a[:, :2] - a[:, 2:] / 2) / a[:, 2:],
                np.log(b[:, 2:] / a[:, 2:]),
            ],
            1,
        )
        error = sigma / (2 * relative.size) ** 0.5
        assert abs(relative.std() - sigma) < 5 * error


def test_an_existing_set_is_kept_and_a_different_one_replaced(tmp_path):
    generate_digits(tmp_path, DigitsConfig(**SMALL))
    marker = tmp_path / 'annotations/train.json'
    before = marker.stat().st_mtime_ns
    generate_digits(tmp_path, DigitsConfig(**SMALL))
    assert marker.stat().st_mtime_ns == before
    generate_digits(tmp_path, DigitsConfig(**SMALL, seed=3))
    assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 3
    assert marker.stat().st_mtime_ns != before


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(num_images=dict(train=1)), 'train, val and test'),
        (dict(num_images=dict(train=0, val=1, test=1)), 'every split'),
        (dict(digit_size=(20, 500)), 'digit_size'),
        (dict(annotation_noise=(0.1, -0.1)), 'annotation_noise'),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DigitsConfig(**changes)
