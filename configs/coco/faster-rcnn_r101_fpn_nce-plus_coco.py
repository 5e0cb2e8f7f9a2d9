# The same on mmdet's frozen Faster R-CNN R101-FPN (AP 39.4 by mmdet).
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
model = dict(backbone=dict(depth=101))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_1x_coco/faster_rcnn_r101_fpn_1x_coco_20200130-f513f705.pth'
