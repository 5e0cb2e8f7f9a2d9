"""Trials are what a config with the same change would give."""

import math

import pytest
import torch

from mmdet_ebm.core import CAUTIOUS, CLASS_SCORE_ALONE, FixedBoxDensity
from mmdet_ebm.evaluation.tuning import (
    NOW,
    PLAIN,
    Trial,
    Worth,
    choose,
    detections_of_trials,
    trials_of,
)

from ..small_models import batch, build, energy_model_cfg


class AsItIs(torch.nn.Module):
    """Images of the loader are ready for the model."""

    def forward(self, data, training):
        return data


@pytest.fixture
def model():
    model = build(energy_model_cfg()).eval()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    roi_head = model.detector.roi_head
    torch.nn.init.normal_(roi_head.bbox_head.fc_cls.weight, std=0.2)
    roi_head.test_cfg.score_thr = 0.2
    model.energy_model.density = FixedBoxDensity(**CAUTIOUS)
    model.data_preprocessor = AsItIs()
    return model


def loader():
    inputs, samples = batch()
    for sample in samples:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return [dict(inputs=inputs, data_samples=samples)]


def test_all_kinds_of_choices_are_tried(model):
    trials = trials_of(model)
    assert [trial.name for trial in trials[:2]] == [NOW, PLAIN]
    assert {trial.group for trial in trials[2:]} == {
        'steps',
        'temperature',
        'prior',
        'votes',
        'ranking',
    }
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names)
    assert 'score x quality ^ 1' in names


def test_where_clusters_have_a_say_their_worth_is_tried(model):
    model.energy_model.density.set_numbers(object_mass=2.0)
    trials = {trial.name: trial for trial in trials_of(model)}
    assert 'P x quality ^ 1' in trials and 'score x quality ^ 1' not in trials
    without = trials['class score in place of P']
    assert without.density == CLASS_SCORE_ALONE


def test_an_unasked_f_leaves_nothing_to_choose_about_it(model):
    model.energy_model.density.temperature = math.inf
    names = {trial.name for trial in trials_of(model)}
    assert not names & {'no prior', 'NMS by log-density', 'f is not asked'}


def test_trials_give_what_the_model_gives_with_the_same_settings(model):
    trials = trials_of(model)
    before = model.energy_model.density.numbers(), model.refinement
    batches = loader()
    found = list(detections_of_trials(model, batches, trials))
    assert before == (model.energy_model.density.numbers(), model.refinement)
    (data,) = batches
    for number, trial in enumerate(trials):
        other = build(energy_model_cfg()).eval()
        other.load_state_dict(model.state_dict())
        other.detector.roi_head.test_cfg.score_thr = 0.2
        other.energy_model.density = FixedBoxDensity(
            **{**CAUTIOUS, **trial.density}
        )
        for name, value in trial.ascent.items():
            setattr(other.energy_model.ascent, name, value)
        for name, value in trial.refinement.items():
            object.__setattr__(other.refinement, name, value)
        with torch.no_grad():
            expected = other.predict(data['inputs'], data['data_samples'])
        for (_, results), sample in zip(found, expected):
            ours, theirs = results[number], sample.pred_instances
            assert torch.equal(ours.labels, theirs.labels)
            torch.testing.assert_close(ours.bboxes, theirs.bboxes)
            torch.testing.assert_close(ours.scores, theirs.scores)


def worth(difference, low):
    return Worth({}, dict(AP=dict(difference=difference, low=low, high=1.0)))


def test_what_surely_pays_is_joined_one_of_each_group():
    trials = [
        Trial(NOW, NOW),
        Trial(PLAIN, PLAIN),
        Trial('a', 'steps', ascent=dict(num_steps=8)),
        Trial('b', 'steps', ascent=dict(num_steps=2)),
        Trial('c', 'votes', dict(vote_share=0.5)),
        Trial('d', 'prior', dict(side_std=0.5)),
    ]
    known = dict(
        zip(
            [trial.name for trial in trials],
            [
                Worth({}, {}),
                worth(0.9, 0.5),
                worth(0.02, 0.01),
                worth(0.03, 0.02),
                worth(0.04, -0.01),
                worth(0.01, 0.005),
            ],
        )
    )
    chosen = choose(trials, known)
    assert chosen.ascent == dict(num_steps=2)
    assert chosen.density == dict(side_std=0.5)
    assert choose(trials, known, join=False).name == 'b'
    known |= {name: worth(0.1, -0.1) for name in 'abcd'}
    assert choose(trials, known) is trials[0]
    assert choose(trials, known, join=False) is trials[0]
