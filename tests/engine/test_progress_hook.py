"""Bars on a terminal, and in one process of several."""

import io
import re

from tqdm import tqdm

from mmdet_ebm.engine import progress_hook
from mmdet_ebm.engine.progress_hook import PassProgress, format_metrics

from .test_screen import train


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


class EagerBar(tqdm):
    """A bar that is drawn at each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, mininterval=0, **kwargs)


def enter_terminal(monkeypatch):
    """What is written to standard error, where bars are.

    It is no fixture, since pytest replaces standard error after those.
    """
    stream = Terminal()
    monkeypatch.setattr('sys.stderr', stream)
    monkeypatch.setattr(progress_hook, 'tqdm', EagerBar)
    return stream


def test_a_terminal_shows_bars_with_totals_and_losses(
    tmp_path, monkeypatch, capsys
):
    terminal = enter_terminal(monkeypatch)
    lines, _ = train(tmp_path / 'bars', capsys)
    states = terminal.getvalue().split('\r')
    for beginning, end in (
        (r'epoch 2/2:  67%', r'2/3 \[.* batches/s, loss 3.0000\]'),
        (r'validation:  33%', r'1/3 \[.* batches/s\]'),
    ):
        assert any(re.search(f'{beginning}.*{end}', each) for each in states)
    # The line of an epoch takes the place of its bar.
    assert states[-1].strip() == ''
    assert sum(line.startswith('epoch') for line in lines) == 2


def test_without_a_terminal_there_are_no_bars(tmp_path, monkeypatch, capsys):
    stream = io.StringIO()
    monkeypatch.setattr('sys.stderr', stream)
    train(tmp_path / 'pipe', capsys)
    assert stream.getvalue() == ''


def test_of_several_processes_the_first_one_shows_progress(
    tmp_path, monkeypatch, capsys
):
    terminal = enter_terminal(monkeypatch)
    monkeypatch.setattr(progress_hook, 'is_main_process', lambda: False)
    lines, _ = train(tmp_path / 'second', capsys)
    assert not any(line.startswith(('training', 'epoch')) for line in lines)
    assert terminal.getvalue() == ''


def test_a_resumed_epoch_goes_on_in_its_middle(tmp_path, capsys):
    by_iterations = {
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 4,
    }
    train(tmp_path / 'a', capsys, **by_iterations)
    checkpoint = tmp_path / 'a/iter_4.pth'
    lines, _ = train(
        tmp_path / 'b', capsys, resume=True, load_from=str(checkpoint)
    )
    assert f'resumed after iteration 4 from {checkpoint}' in lines
    assert sum(line.startswith('epoch') for line in lines) == 1
    assert any(line.startswith('epoch 2/2: 3/3 batches') for line in lines)


def test_passes_over_a_loader_are_counted(monkeypatch):
    terminal = enter_terminal(monkeypatch)
    passes = PassProgress([1, 2], 'density')
    assert [list(passes), list(passes)] == [[1, 2], [1, 2]]
    shown = terminal.getvalue()
    assert 'density, pass 1 of 2: 100%' in shown
    assert 'density, pass 2 of 2: 100%' in shown


def test_ap_is_in_per_cent_and_other_metrics_are_as_they_are():
    metrics = {
        'coco/bbox_mAP': 0.489,
        'coco/bbox_mAP_90': 0.062,
        'coco/bbox_mAP_s': -1.0,
        'coco/bbox_mAP_plain': 0.452,
        'coco/bbox_mAP_90_gain': 0.036,
        'coco/segm_mAP_50': 0.7,
        'pascal_voc/mAP': 0.25,
    }
    assert format_metrics(metrics) == (
        'AP 48.9, AP90 6.2, mask AP50 70.0, pascal_voc/mAP 0.25'
    )
