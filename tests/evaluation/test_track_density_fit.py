"""A density fitted to a tracker: f is trusted as far as it helps."""

import math

import numpy as np
import pytest
import torch

from mmdet_ebm.evaluation import fit_tracker
from mmdet_ebm.models.trackers import TrackRefiner
from mmdet_ebm.tracking import find_tracks
from tests.small_trackers import tracker_model
from tests.tracking.videos import write_otb


class KnowsTheTruth:
    """f of a Gaussian around the true box, in place of a trained network.

    The model looks at the frame last cut; so does this.
    """

    def __init__(self, model, std):
        self.model, self.std = model, std
        self.truth = None
        scene = model.scene

        def remembered(frame, template, box):
            found, region = scene(frame, template, box)
            self.frame, self.region = frame, region
            return found, region

        model.scene = remembered
        model.energy_model.corner_logdensity_fn = self.of

    def of(self, scene, reference, head=None):
        # The square is the only thing in the frame that is white.
        rows, columns = np.nonzero((self.frame == 255).all(2))
        truth = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        corners = torch.from_numpy(
            self.region.to_patch(np.array(truth, float))
        ).float()
        size = (corners[2:] - corners[:2]).repeat(2)
        return lambda c: (
            -0.5 * ((c - corners) / size / self.std).square().sum(-1)
        )


@pytest.fixture
def tracks(tmp_path):
    import cv2

    for name in ('a', 'b', 'c'):
        boxes = write_otb(tmp_path, name, num_frames=10)
        for path, box in zip(
            sorted((tmp_path / name / 'img').iterdir()), boxes
        ):
            x1, y1, x2, y2 = box.astype(int)
            frame = cv2.imread(str(path)).clip(max=250)
            frame[y1:y2, x1:x2] = 255
            cv2.imwrite(str(path), frame)
    return find_tracks(tmp_path, 'otb')


def jittered(tracks, std):
    rng = np.random.default_rng(0)
    boxes = {}
    for track in tracks:
        size = (track.boxes[:, 2:] - track.boxes[:, :2]).repeat(2, 1)
        noise = rng.normal(0, std, track.boxes.shape) * size
        noise[0] = 0
        boxes[track.name] = track.boxes + noise
    return boxes


def test_a_good_f_is_trusted_and_gains(tracks):
    model = tracker_model()
    model.eval()
    KnowsTheTruth(model, 0.02)
    fit = fit_tracker(model, tracks, jittered(tracks, 0.08))
    assert math.isfinite(fit.numbers['temperature'])
    assert fit.gain > 0.1
    assert model.energy_model.density.fitted


def test_deviations_agree_with_the_errors_that_were_seen(tracks):
    model = tracker_model()
    model.eval()
    KnowsTheTruth(model, 0.02)
    boxes = jittered(tracks, 0.08)
    factor = fit_tracker(model, tracks, boxes).numbers['std_factor']
    ratios = []
    for track in tracks:
        refined = TrackRefiner(model, True).track(track, boxes[track.name])
        error = (refined.boxes - track.boxes)[1:]
        ratios.append(error / refined.std[1:])
    assert factor > 0
    assert np.sqrt(np.nanmean(np.square(ratios))) == pytest.approx(1, rel=0.1)


def test_a_worthless_f_leaves_boxes_where_they_are(tracks):
    model = tracker_model()
    model.eval()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    fit = fit_tracker(model, tracks, jittered(tracks, 0.02))
    assert fit.gain >= 0
    if math.isinf(fit.numbers['temperature']):
        assert fit.gain == 0


def test_a_tracker_that_is_lost_everywhere_cannot_be_fitted(tracks):
    model = tracker_model()
    model.eval()
    boxes = {t.name: t.boxes + 500 for t in tracks}
    with pytest.raises(ValueError, match='lost in every frame'):
        fit_tracker(model, tracks, boxes)
