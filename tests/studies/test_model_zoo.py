"""The page of all configs is what the result files say."""

from mmdet_ebm.shipped import shipped_configs
from studies import model_zoo


def result(config, seeds, stage='refined', split='test', gain=0.01):
    run = dict(AP=0.5, AP75=0.4)
    better = dict(AP=0.5 + gain, AP75=0.4)
    interval = dict(difference=gain, low=0.005, high=0.015)
    return dict(
        config=f'configs/{config}',
        split=split,
        stages={
            'plain': dict(runs=[run] * seeds),
            stage: dict(runs=[better] * seeds),
        },
        differences={f'{stage} - plain': dict(AP=interval, AP75=interval)},
    )


def test_the_page_is_up_to_date_and_has_every_energy_config():
    text = model_zoo.PAGE.read_text()
    assert text == model_zoo.page(), 'run python -m studies.model_zoo'
    for path in shipped_configs():
        if 'EnergyDetector' in path.read_text():
            assert f'[`{path.stem}`]' in text, path


def test_figures_are_those_of_the_default_with_most_seeds_on_test():
    config = 'digits/a_nce-plus_digits.py'
    results = [
        result(config, 3, 'both', gain=0.1),
        result(config, 1),
        result(config, 2, gain=0.02),
        result(config, 9, split='val'),
        result('digits/b_nce-plus_digits.py', 5),
    ]
    row = model_zoo.row_of(config, results)
    assert row[1:4] == ['50.0', '52.0', '+2.0 [+0.5, +1.5]']
    assert row[5] == '2'
    (old,) = [results[0]]
    assert model_zoo.row_of(config, [old])[5] == '3, version 0.1'


def test_what_was_not_run_says_so():
    row = model_zoo.row_of('digits/a_nce-plus_digits.py', [])
    assert row[1:4] == ['not run'] * 3
    assert model_zoo.tracking_rows(None)[0][2:5] == ['not run'] * 3
