"""Methods are compared, and a study continues where it stopped."""

import json
import re

import pytest

from studies.compare_methods import main

METRICS = {'AP', 'AP50', 'AP75', 'AP90'}


@pytest.fixture
def compare(plain, digits, monkeypatch, tmp_path):
    """Run the study of some methods; gives its figures."""
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    out = tmp_path / 'out' / 'methods.json'

    def run(*methods):
        arguments = f"""digits --work-dir {tmp_path} --seeds 0 --plain {plain}
            --steps 2 --samples 4 --device cpu --out {out} --methods"""
        main([*arguments.split(), *methods])
        return json.loads(out.read_text())

    return run


def trained(folder):
    """When each energy model was written."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.glob('seed0/*/energy_model.pth')
    }


def test_methods_are_compared_and_not_trained_twice(compare, tmp_path, capsys):
    compare('NCE+')
    first = trained(tmp_path)
    # Published and alternative widths; equal seconds are equal steps here.
    assert len(first) == 2
    figures = compare('NCE+', 'IoU-Net')
    second = trained(tmp_path)
    assert all(second[path] == time for path, time in first.items())
    assert len(second) > 3
    assert set(figures['published']) == {'NCE+', 'IoU-Net'}
    (run,) = figures['published']['NCE+']
    assert set(run) == METRICS | {'seconds_per_step', 'peak_mib'}
    assert run['peak_mib'] > 0
    table = (tmp_path / 'out/methods.md').read_text()
    for name in (r'NCE\+', 'IoU-Net', 'plain'):
        assert len(re.findall(rf'^\| {name} +\|', table, re.M)) == 3
    assert table in capsys.readouterr().out


def test_the_best_settings_on_val_are_chosen(compare):
    figures = compare('IoU-Net')
    assert 'equal seconds' not in figures  # there is no NCE+ to equal
    search = figures['search']['IoU-Net']
    tried = [(t['changes'], t['step_length']) for t in search['tried']]
    key = 'model.energy_model.loss.min_iou'
    assert tried == [
        ({key: min_iou}, step)
        for min_iou in (0.5, 0.3)
        for step in (0.125, 0.25, 0.5, 1.0, 2.0)
    ]
    assert search['AP'] == max(trial['AP'] for trial in search['tried'])


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('--seeds 0 1 --plain one.pth', 'one checkpoint for each'),
        ('--methods NCE++', 'NCE++'),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(['digits', *arguments.split()])
    assert message in capsys.readouterr().err
