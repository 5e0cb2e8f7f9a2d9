"""Every section runs, and its baselines compute what the package does."""

import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.published import sample_noise_of_object
from benchmarks.scene import Sizes
from mmdet_ebm.core import GaussianMixtureNoise

SMALL = Sizes(
    config='configs/digits/faster-rcnn_r18-half_nce-plus_digits.py',
    image=(96, 128),
    small_detectors={},
    pooled=(6,),
    detections=9,
    noise=5,
    images_of_a_step=4,
    objects_of_a_step=8,
)


def figures(section, tmp_path):
    """The rows that a section reports in two rounds."""
    out = tmp_path / 'new folder' / 'figures.json'
    arguments = ['--rounds', '2', '--device', 'cpu', '--out', str(out)]
    main([section, *arguments], SMALL)
    report = json.loads(out.read_text())
    assert (report['rounds'], report['threads']) == (2, 1)
    return report['figures']


def ratios(rows):
    return {row['what']: row for row in rows if 'other' in row}


def test_pooling_tells_time_and_memory(tmp_path):
    rows = ratios(figures('pooling', tmp_path))
    assert list(rows) == [
        f'pooling 6 boxes, forward{gradients}'
        for gradients in ('', ', box gradients', ', all gradients')
    ]
    forward, *_, backward = rows.values()
    assert forward['other'] == 'RoIAlign'
    assert backward['other'] == 'RoIAlign and backward'
    for row in rows.values():
        low, high = row['quartiles']
        assert 0 < low <= row['ratio'] <= high
    # Gradients of the maps are as large as the maps.
    assert backward['peak_mib'] > forward['peak_mib'] > 0


def test_published_loop_ends_where_the_published_schedule_does(tmp_path):
    rows = figures('refinement', tmp_path)
    assert len(ratios(rows)) == 9
    boxes = [row for row in rows if 'mean_shift_px' in row]
    assert len(boxes) == 3
    for row in boxes:
        assert row['max_difference_px'] < 1e-4 < row['mean_shift_px']


def test_detector_is_what_stages_are_compared_with(tmp_path):
    rows = ratios(figures('detector', tmp_path))
    assert {row['other'] for row in rows.values()} == {'detector'}
    assert len(rows) == 11


def test_training_tells_time_and_memory(tmp_path):
    rows = figures('training', tmp_path)
    steps = ('whole batch', 'chunked', 'reduced channels')
    for step in steps:
        assert [
            row['other']
            for row in rows
            if row['what'] == f'training step, {step}'
        ] == ['published', 'matrix products alone']
    memory = {r['what']: r['mib'] for r in rows if 'published_mib' in r}
    assert list(memory) == [f'training step, {s}, peak memory' for s in steps]


def test_growth_compares_with_the_usual_case(tmp_path):
    rows = ratios(figures('growth', tmp_path))
    assert len(rows) == 9 + 3
    assert rows['ascent, 1 times as many boxes']['ratio'] == 1


@pytest.mark.parametrize(
    'arguments, message',
    [(['nothing'], 'invalid choice'), (['all', '--rounds', '0'], 'rounds')],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_noise_of_an_object_has_the_density_of_the_package():
    sigmas = (0.1, 0.2, 0.4)
    offsets, logprobs = sample_noise_of_object(sigmas, 20)
    expected = GaussianMixtureNoise(sigmas).logprob(offsets[None])[0]
    torch.testing.assert_close(logprobs, expected)
