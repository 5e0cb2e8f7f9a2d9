# NCE+ energy model behind mmdet's frozen two-stage Deformable DETR R50 (AP 47.0 by mmdet).
# Data and schedule are those of Faster R-CNN's.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
from mmengine.hub import get_config

detector = get_config(
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
).model
model = dict(
    _delete_=True,
    type='EnergyDetector',
    detector=detector,
    features='encoder',  # better than the neck's for DINO on the digits
    energy_model=_base_.model.energy_model,
)
del detector
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco/deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth'
