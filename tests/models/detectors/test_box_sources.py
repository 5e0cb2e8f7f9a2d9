"""Where boxes come from: known kinds, limits, and kinds of one's own."""

import copy

import pytest
import torch
from mmdet.models.detectors import RetinaNet
from mmengine.structures import InstanceData

from mmdet_ebm.models import BOX_SOURCES, BoxSource, Refinement
from mmdet_ebm.models.detectors.box_sources import (
    DenseBoxSource,
    TwoStageBoxSource,
    source_for,
)

from ...small_models import (
    FAMILIES,
    batch,
    build,
    detect_everything,
    mmdet_model_cfg,
    plain_cfg,
    results,
    wrapped,
)

KINDS = {
    **dict.fromkeys(FAMILIES, DenseBoxSource),
    **dict.fromkeys(
        ['Faster R-CNN', 'Cascade R-CNN', 'Mask R-CNN'], TwoStageBoxSource
    ),
    **dict.fromkeys(['Deformable DETR', 'DINO', 'DETR'], BoxSource),
}


def shipped(path):
    """A config of mmdet without pretrained weights."""
    cfg = copy.deepcopy(mmdet_model_cfg(path))
    cfg.backbone.init_cfg = None
    return cfg


@pytest.mark.parametrize('family', FAMILIES)
def test_each_family_has_its_kind(family):
    source = source_for(build(plain_cfg(family)))
    assert type(source) is KINDS[family]
    assert source.num_classes == 80
    assert source.can_be_ordered == (KINDS[family] is not BoxSource)


# --------------------------------------------------------------- of one's own


@pytest.fixture
def registered():
    """Register classes for the time of a test."""
    names = []

    def register(kind):
        names.append(kind.__name__)
        return BOX_SOURCES.register_module()(kind)

    yield register
    for name in names:
        del BOX_SOURCES.module_dict[name]


class OneBox(BoxSource):
    """Finds one box in each image, and knows it as a candidate."""

    def __init__(self, detector, side=40.0):
        super().__init__(detector)
        self.side = side

    @classmethod
    def suits(cls, detector):
        return isinstance(detector, RetinaNet)

    def detections(self, inputs, samples):
        self.detector.extract_feat(inputs)
        return [
            InstanceData(
                bboxes=torch.tensor([[5.0, 5, 5 + self.side, 5 + self.side]]),
                scores=torch.ones(1),
                labels=torch.zeros(1).long(),
            )
            for _ in samples
        ]


def test_the_newest_registered_one_that_suits_is_taken(registered):
    registered(OneBox)
    model = wrapped(plain_cfg('RetinaNet'))
    assert type(model.box_source) is OneBox
    assert type(source_for(build(plain_cfg('FCOS')))) is DenseBoxSource

    @registered
    class Newer(OneBox):
        pass

    assert type(source_for(model.detector)) is Newer


def test_its_boxes_are_refined(registered):
    registered(OneBox)
    model = wrapped(plain_cfg('RetinaNet'))
    assert model.refinement == Refinement(energy_nms=False)
    for result in results(model, *batch(), rescale=False):
        assert result.initial_bboxes.tolist() == [[5, 5, 45, 45]]
        assert not torch.equal(result.bboxes, result.initial_bboxes)


def test_it_can_be_chosen_and_given_settings(registered):
    registered(OneBox)
    source = dict(type='OneBox', side=20.0)
    # Even for a detector that it would not take by itself.
    model = wrapped(plain_cfg('FCOS'), box_source=source)
    for result in results(model, *batch(), rescale=False):
        assert result.initial_bboxes.tolist() == [[5, 5, 25, 25]]
    model = wrapped(plain_cfg('FCOS'), box_source=dict(type='BoxSource'))
    assert type(model.box_source) is BoxSource


def test_its_candidates_can_be_ordered(registered):
    @registered
    class TwoBoxes(OneBox):
        @property
        def test_cfg(self):
            return self.detector.bbox_head.test_cfg

        def candidates(self, inputs, samples):
            return [
                InstanceData.cat([found, found])
                for found in self.detections(inputs, samples)
            ]

    model = wrapped(plain_cfg('RetinaNet'))
    assert model.box_source.can_be_ordered
    assert all(len(result) == 1 for result in results(model, *batch()))


def test_it_can_add_what_follows_from_refined_boxes(registered):
    @registered
    class WithAreas(OneBox):
        def add_masks(self, neck_maps, found, metas, rescale):
            assert len(neck_maps) == 5 and rescale
            for result in found:
                sides = result.bboxes[:, 2:] - result.bboxes[:, :2]
                result.areas = sides.prod(1)
            return found

    model = wrapped(plain_cfg('RetinaNet'))
    for result in results(model, *batch()):
        sides = result.bboxes[:, 2:] - result.bboxes[:, :2]  # twice as large
        torch.testing.assert_close(4 * result.areas, sides.prod(1))


def test_unknown_sources_are_refused():
    with pytest.raises(KeyError, match='NoSource'):
        wrapped(plain_cfg('FCOS'), box_source=dict(type='NoSource'))


# --------------------------------------------------------------------- limits


def test_ordering_a_detector_without_nms_is_refused():
    message = 'DINO has no class-wise NMS.*nothing to order by log-density'
    with pytest.raises(ValueError, match=message):
        wrapped(plain_cfg('DINO'), refinement=dict(energy_nms=True))
    model = wrapped(plain_cfg('DINO'))
    model.refinement = Refinement(energy_nms=True)
    with pytest.raises(ValueError, match=message):
        results(model, *batch())


@pytest.mark.parametrize(
    'nms',
    [
        dict(type='soft_nms', iou_threshold=0.5),
        dict(type='nms', iou_threshold=0.5, class_agnostic=True),
    ],
)
@pytest.mark.parametrize('family', ['RetinaNet', 'Faster R-CNN'])
def test_another_nms_leaves_the_ascent(family, nms):
    cfg = plain_cfg(family)
    cfg.test_cfg.get('rcnn', cfg.test_cfg).nms = nms
    model = detect_everything(wrapped(cfg))
    assert model.refinement == Refinement(energy_nms=False, ascent=True)
    assert all('initial_bboxes' in r for r in results(model, *batch()))
    with pytest.raises(ValueError, match='energy_nms=False'):
        wrapped(cfg, refinement=dict(energy_nms=True))


@pytest.mark.parametrize(
    'family, no_limit, none',
    [('RetinaNet', [None], [0]), ('Faster R-CNN', [0, -1], [])],
)
@pytest.mark.parametrize('energy_nms', [False, True])
def test_limits_of_boxes_are_those_of_the_detector(
    family, no_limit, none, energy_nms
):
    model = detect_everything(
        wrapped(
            plain_cfg(family),
            refinement=dict(energy_nms=energy_nms, ascent=False),
        )
    )
    head = getattr(model.detector, 'roi_head', None)
    head = head or model.detector.bbox_head
    inputs = batch()

    def counts(limit):
        head.test_cfg.max_per_img = limit
        return [len(r['scores']) for r in results(model, *inputs)]

    everything = counts(10**6)
    assert sum(everything) > 0
    for limit in no_limit:
        assert counts(limit) == everything
    for limit in none:
        assert not any(counts(limit))


def test_a_dense_head_without_a_limit_of_boxes():
    model = wrapped(shipped('yolox/yolox_tiny_8xb8-300e_coco.py'))
    model.box_source.test_cfg.score_thr = 0.9  # hardly any box survives
    assert 'max_per_img' not in model.box_source.test_cfg
    assert model.box_source.can_be_ordered
    assert len(results(model, *batch())) == 2


def test_masks_that_do_not_come_from_boxes_are_refused():
    model = wrapped(shipped('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py'))
    assert not model.box_source.can_be_ordered
    with pytest.raises(ValueError, match='the masks of RTMDet'):
        results(model, *batch())


def test_boxes_voted_for_after_the_nms_are_moved_only():
    cfg = plain_cfg('ATSS')
    cfg.bbox_head.type = 'PAAHead'
    cfg.bbox_head.anchor_generator.ratios = [1.0]
    cfg.type = 'PAA'
    assert type(source_for(build(cfg))) is BoxSource


def test_detectors_without_boxes_are_refused():
    with pytest.raises(
        ValueError, match='no box head that tells its num_classes'
    ):
        wrapped(shipped('solo/solo_r50_fpn_1x_coco.py'))
