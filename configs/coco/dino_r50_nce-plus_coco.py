# NCE+ energy model behind mmdet's frozen DINO R50 (AP 49.0 by mmdet).
# Data and schedule are those of Faster R-CNN's.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
from mmengine.hub import get_config

detector = get_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py').model
model = dict(
    _delete_=True,
    type='EnergyDetector',
    detector=detector,
    features='encoder',  # better than the neck's for DINO on the digits
    energy_model=_base_.model.energy_model,
)
del detector
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/dino/dino-4scale_r50_8xb2-12e_coco/dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth'
