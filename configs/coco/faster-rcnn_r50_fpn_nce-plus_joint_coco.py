# Detector and energy model trained together from ImageNet weights, by the 1x
# schedule of Detectron (90k iterations of 16 images, about mmdet's 12 epochs).
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
model = dict(freeze_detector=False)
load_from = None

train_cfg = dict(max_iters=90000)
optim_wrapper = dict(optimizer=dict(lr=0.02), paramwise_cfg=None)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500
    ),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=90000,
        milestones=[60000, 80000],
        gamma=0.1,
    ),
]
