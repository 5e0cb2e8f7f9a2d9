"""Grouping images into batches."""

import numpy as np

from mmdet_ebm.apis import items
from mmdet_ebm.apis.inputs import Source
from mmdet_ebm.apis.items import EndOfVideo, Item, batches
from mmdet_ebm.apis.results import ImageResult


def grouped(names, batch_size, key=lambda item: item.source.name[0]):
    """Names by batch; those of a kind may go together."""
    image = np.zeros((2, 2, 3), np.uint8)

    def item(name):
        source = Source(name, image)
        if name == 'end':
            return EndOfVideo(source, '', 0, True)
        return Item(ImageResult(name), source, '', image)

    return [
        [each.source.name for each in batch]
        if isinstance(batch, list)
        else 'end'
        for batch in batches(map(item, names), batch_size, key)
    ]


def test_only_items_of_a_kind_go_together():
    assert grouped(['a1', 'b1', 'a2', 'b2', 'a3'], 2) == [
        ['a1', 'a2'],
        ['b1', 'b2'],
        ['a3'],
    ]


def test_items_without_a_key_do_not_wait():
    assert grouped(['a1', 'a2'], 2, key=lambda item: None) == [['a1'], ['a2']]


def test_nothing_waits_beyond_the_end_of_a_video():
    assert grouped(['a1', 'b1', 'end', 'a2'], 2) == [
        ['a1'],
        ['b1'],
        'end',
        ['a2'],
    ]


def test_few_images_wait(monkeypatch):
    assert grouped('abcdefgh', 2)[0] == ['a']
    assert len(grouped('abcdefgh', 2)) == 8
    monkeypatch.setattr(items, 'MAX_BYTES', 30)  # not three of 12
    assert grouped(['a1', 'b1', 'b2', 'a2'], 3) == [['b1', 'b2'], ['a1', 'a2']]
