# NCE+ energy model behind mmdet's frozen YOLOX-nano, for a few thousand photos
# of COCO's classes: annotations/{train,val,test}.json and images/ under the
# data root. The environment variable PHOTOS_ROOT says where it lies.
_base_ = [
    '../_base_/datasets/small_coco.py',
    '../_base_/small_runtime.py',
]
from mmengine.hub import get_config

detector = get_config('mmdet::yolox/yolox_nano_8xb8-300e_coco.py').model
# All images are as large as at test time.
detector.data_preprocessor.batch_augments = None
model = dict(
    type='EnergyDetector',
    detector=detector,
    energy_model=dict(
        # The backbone's stages of stride 4, 8 and 16, and the detector's maps.
        # 64 channels have the same AP, and a step takes twice as long.
        neck=dict(type='EnergyNeck', out_channels=32),
        head=dict(fc_out_channels=256),
        loss=dict(type='NCEPlusLoss', sigmas='measured', num_samples=31),
        # On val as good as 2, and quicker.
        ascent=dict(num_steps=1),
    ),
    refinement=dict(keep_plain=True),
)
del detector
# https://download.openmmlab.com/mmdetection/v2.0/yolox/ has none of this size;
# any checkpoint of the plain config will do.
load_from = 'yolox_nano.pth'

data_root = '{{$PHOTOS_ROOT:data/photos}}'
pad = dict(
    type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))
)
resize = dict(type='Resize', scale=(416, 416), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    resize,
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    pad,
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    pad,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
train_dataloader = dict(
    batch_size=16,
    batch_sampler=None,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
val_evaluator = dict(ann_file=data_root + '/annotations/val.json')
test_evaluator = dict(ann_file=data_root + '/annotations/test.json')

max_epochs = 18
train_cfg = dict(
    type='EpochBasedTrainLoop',
    max_epochs=max_epochs,
    val_interval=max_epochs,
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=10),
    paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=1e-5,
    ),
]
