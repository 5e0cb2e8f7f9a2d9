# A plain DINO on the generated digits. As elsewhere its backbone comes
# trained: from the plain Faster R-CNN of this folder instead of ImageNet.
_base_ = [
    '../_base_/models/dino_r18-half.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/small_runtime.py',
]
model = dict(bbox_head=dict(num_classes=10))
# Of this only the backbone's weights have names that DINO has.
load_from = 'work_dirs/faster-rcnn_r18-half_digits/epoch_8.pth'

max_epochs = 12
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=4
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.2),
            'sampling_offsets': dict(lr_mult=0.2),
        }
    ),
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
