# The plain detector on BCCD, trained from scratch.
_base_ = [
    '../_base_/models/faster-rcnn_r18-half_fpn64.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/small_runtime.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))

max_epochs = 24
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=4
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=1e-5,
    ),
]
