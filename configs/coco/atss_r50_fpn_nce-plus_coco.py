# NCE+ energy model behind mmdet's frozen ATSS R50-FPN (AP 39.4 by mmdet).
# Data and schedule are those of Faster R-CNN's.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
from mmengine.hub import get_config

detector = get_config('mmdet::atss/atss_r50_fpn_1x_coco.py').model
model = dict(
    _delete_=True,
    type='EnergyDetector',
    detector=detector,
    energy_model=_base_.model.energy_model,
)
del detector
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/atss/atss_r50_fpn_1x_coco/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth'
