# NCE+ on COCO as published: a frozen Faster R-CNN R50-FPN, 16 images an
# iteration (2 on each of 8 GPUs), 60k iterations, steps at 40k and 50k.
# "How to Train Your Energy-Based Model for Regression", BMVC 2020, section 5.1
# and the authors' code.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(
    imports=['mmdet_ebm.models', 'mmdet_ebm.evaluation'],
    allow_failed_imports=False,
)

model = dict(
    _delete_=True,
    type='EnergyDetector',
    detector=_base_.model,
    energy_model=dict(
        head=dict(fc_out_channels=1024),
        loss=dict(
            type='NCEPlusLoss',
            sigmas=(0.075, 0.15, 0.3),
            beta=0.1,
            num_samples=127,
        ),
        # The published ascent: num_steps=10, step_rule='decay'.
        ascent=dict(step_length=(80e-5, 32e-4)),
    ),
)
# mmdet's own checkpoint of the base config, AP 37.4. A local path works too.
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'

train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=60000,
    val_interval=10000,
)
train_dataloader = dict(
    batch_size=2, sampler=dict(type='InfiniteSampler', shuffle=True)
)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=500
    ),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=60000,
        milestones=[40000, 50000],
        gamma=0.1,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000))
log_processor = dict(by_epoch=False)

val_evaluator = dict(type='CocoAP90Metric')
test_evaluator = dict(type='CocoAP90Metric')
