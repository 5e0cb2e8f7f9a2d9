"""Long runs in small: everything is found, and the memory is looked at."""

import os
import sys

import numpy as np
import pytest

from benchmarks import load
from mmdet_ebm.decoding import UnreadableInput, read_image

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith('linux'), reason='reads /proc'
)


def test_photos_are_of_mixed_kinds_and_the_damaged_ones_are_counted(tmp_path):
    damaged = load.write_photos(tmp_path, 120)
    files = sorted(tmp_path.rglob('*.*'))
    assert len(files) == 120
    assert {f.suffix for f in files} == {
        '.jpg',
        '.png',
        '.webp',
        '.bmp',
        '.tif',
    }
    unreadable = 0
    for file in files:
        try:
            assert read_image(file).dtype == np.uint8
        except UnreadableInput:
            unreadable += 1
    assert unreadable == damaged == 2


def test_a_process_is_watched_and_killed_where_it_should_be():
    shares = iter([0.0, 0.1, 0.5, 0.9])
    run = load.Watched(
        [sys.executable, '-c', 'import time; time.sleep(60)'],
        dict(os.environ),
        lambda: next(shares),
        kill_at=0.5,
    )
    assert run.returncode == -9
    assert 1 < float(run.memory_at(0.1)) < 1000
    assert run.memory_at(0.3) == ''
    assert run.row('name')[0] == 'name'


def test_memory_of_children_counts():
    own = load.memory(os.getpid())
    assert own > 50
    assert load.memory(2**22 - 1) == 0  # there is none
