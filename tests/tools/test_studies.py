"""The studies run, continue where they stopped, and say what they did."""

import json

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.datasets import DigitsConfig, generate_digits

from ..conftest import CONFIGS, build
from .conftest import run_tool


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """A detector that was not trained: it detects much, and badly."""
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / 'digits/faster-rcnn_r18-half_digits.py')
    path = tmp_path_factory.mktemp('plain') / 'plain.pth'
    torch.save(dict(state_dict=build(cfg.model).state_dict()), path)
    return path


def test_methods_are_compared_and_not_trained_twice(
    plain, digits, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    out = tmp_path / 'out' / 'methods.json'

    def compare(*methods):
        run_tool(
            monkeypatch,
            'compare_methods',
            'digits',
            '--work-dir',
            tmp_path,
            '--seeds',
            0,
            '--plain',
            plain,
            '--steps',
            2,
            '--samples',
            4,
            '--device',
            'cpu',
            '--out',
            out,
            '--methods',
            *methods,
        )
        return {
            path: path.stat().st_mtime_ns
            for path in tmp_path.glob('seed0/*/head.pth')
        }

    first = compare('NCE+')
    # Published and alternative widths; equal seconds are equal steps here.
    assert len(first) == 2
    second = compare('NCE+', 'IoU-Net')
    assert all(second[path] == time for path, time in first.items())
    assert len(second) > 3
    figures = json.loads(out.read_text())
    assert set(figures['published']) == {'NCE+', 'IoU-Net'}
    (run,) = figures['published']['NCE+']
    assert {
        'AP',
        'AP50',
        'AP75',
        'AP90',
        'seconds_per_step',
        'peak_mib',
    } <= set(run) and run['peak_mib'] > 0
    search = figures['search']['NCE+']
    assert len(search['tried']) == 10
    assert search['AP'] == max(trial['AP'] for trial in search['tried'])
    table = out.with_suffix('.md').read_text()
    assert table.count('| NCE+ |') == 3 and table.count('| plain |') == 3
    assert table in capsys.readouterr().out


def test_label_noise_is_studied(plain, monkeypatch, tmp_path):
    data = generate_digits(
        tmp_path / 'data',
        DigitsConfig(
            num_images=dict(train=8, val=4, test=4), annotation_noise=(0.1,)
        ),
    )
    run_tool(
        monkeypatch,
        'label_noise',
        '--work-dir',
        tmp_path,
        '--data',
        data,
        '--noise',
        0,
        0.1,
        '--beta',
        0,
        0.5,
        '--seeds',
        0,
        '--plain',
        plain,
        '--steps',
        2,
        '--samples',
        4,
        '--device',
        'cpu',
    )
    figures = json.loads((tmp_path / 'label_noise.json').read_text())
    assert [(c['noise'], c['beta']) for c in figures['cells']] == [
        (0, 0),
        (0, 0.5),
        (0.1, 0),
        (0.1, 0.5),
    ]
    assert (tmp_path / 'label_noise.png').stat().st_size > 10_000
    assert '| 0.1 |' in (tmp_path / 'label_noise.md').read_text()


@pytest.mark.parametrize(
    'tool, arguments, message',
    [
        (
            'compare_methods',
            ('digits', '--seeds', 0, 1, '--plain', 'one.pth'),
            'one checkpoint for each',
        ),
        ('compare_methods', ('digits', '--methods', 'NCE++'), 'NCE++'),
        ('label_noise', ('--noise', -0.1), 'negative'),
    ],
)
def test_wrong_arguments_are_named(
    tool, arguments, message, monkeypatch, capsys
):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, tool, *arguments)
    assert message in capsys.readouterr().err
