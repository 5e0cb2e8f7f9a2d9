# NCE+ energy model of a target's box, on a frozen ImageNet MobileNetV2.
# $MOBILENETV2 names the backbone's weights, mmdet's or torchvision's.
_base_ = ['../_base_/small_runtime.py', '../_base_/datasets/tracking_pairs.py']
custom_imports = dict(
    imports=['mmdet_ebm.models', 'mmdet_ebm.datasets.tracking'],
    allow_failed_imports=False,
)
model = dict(
    type='TargetConditionalEnergy',
    patch_size=_base_.patch_size,
    context=_base_.context,
    data_preprocessor=dict(
        type='TrackDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='MobileNetV2Stem',
        out_indices=(1, 2, 4),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MOBILENETV2:open-mmlab://mmdet/mobilenet_v2}}',
        ),
    ),
    energy_model=dict(
        type='TargetEnergyModel',
        in_channels=(24, 32, 96),
        channels=48,
        featmap_strides=(4, 8, 16),
        head=dict(fc_out_channels=256),
        loss=dict(
            type='NCEPlusLoss',
            sigmas=(0.05, 0.15, 0.4),
            beta=0.1,
            num_samples=63,
        ),
    ),
)

max_iters = 3000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', T_max=max_iters, by_epoch=False, eta_min=1e-5
    ),
]
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False, interval=200, max_keep_ckpts=1, save_best=None
    ),
)
log_processor = dict(by_epoch=False)
