# NCE+ energy model behind mmdet's frozen FCOS R50-FPN (AP 36.6 by mmdet).
# Data and schedule are those of Faster R-CNN's.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
from mmengine.hub import get_config

detector = get_config(
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
).model
model = dict(
    _delete_=True,
    type='EnergyDetector',
    detector=detector,
    energy_model=_base_.model.energy_model,
)
del detector
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r50_caffe_fpn_gn-head_1x_coco/fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth'
