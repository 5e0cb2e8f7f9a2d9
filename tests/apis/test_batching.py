"""Grouping images into batches."""

import numpy as np
import pytest

from mmdet_ebm.apis import batching
from mmdet_ebm.apis.batching import (
    EndOfVideo,
    PendingImage,
    group_into_batches,
)
from mmdet_ebm.apis.inputs import Source
from mmdet_ebm.apis.results import ImageResult

HEIGHTS = dict(a=30, b=50)


def pending(name):
    """An image whose height follows from the first letter of its name."""
    image = np.zeros((2, 2, 3), np.uint8)
    source = Source(name, image)
    if name == 'end':
        return EndOfVideo(source, '', 0, True)
    data = None
    if name[0] in HEIGHTS:
        data = dict(inputs=np.zeros((3, HEIGHTS[name[0]], 64)))
    return PendingImage(ImageResult(name), source, '', image, data)


def grouped(names, batch_size, divisor=1):
    """Names by batch."""
    return [
        [image.source.name for image in batch]
        if isinstance(batch, list)
        else 'end'
        for batch in group_into_batches(
            map(pending, names), batch_size, divisor
        )
    ]


@pytest.mark.parametrize(
    'divisor, batches',
    [(32, [['a1', 'a2'], ['b1', 'b2']]), (64, [['a1', 'b1'], ['a2', 'b2']])],
)
def test_images_of_equal_padded_size_go_together(divisor, batches):
    assert grouped(['a1', 'b1', 'a2', 'b2'], 2, divisor) == batches


def test_images_that_the_model_does_not_see_do_not_wait():
    assert grouped(['kept1', 'kept2'], 2) == [['kept1'], ['kept2']]


def test_nothing_waits_beyond_the_end_of_a_video():
    assert grouped(['a1', 'b1', 'end', 'a2'], 2) == [
        ['a1'],
        ['b1'],
        'end',
        ['a2'],
    ]


def test_only_a_few_images_wait(monkeypatch):
    heights = {letter: 10 + i for i, letter in enumerate('abcdefgh')}
    for letter, height in heights.items():
        monkeypatch.setitem(HEIGHTS, letter, height)
    assert grouped('abcdefgh', 2) == [[letter] for letter in 'abcdefgh']


def test_images_that_wait_are_limited_in_bytes(monkeypatch):
    monkeypatch.setattr(batching, 'MAX_BYTES', 30)  # not three of 12
    assert grouped(['a1', 'b1', 'b2', 'a2'], 3) == [['b1', 'b2'], ['a1', 'a2']]
