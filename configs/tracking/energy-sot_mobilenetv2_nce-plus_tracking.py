# The tracker around the energy model of this folder, which must be trained
# first. The sequences lie below $TRACKING_ROOT, in OTB's layout.
_base_ = './mobilenetv2_nce-plus_tracking.py'
custom_imports = dict(
    imports=[
        'mmdet_ebm.models',
        'mmdet_ebm.datasets.tracking',
        'mmdet_ebm.evaluation',
    ],
    allow_failed_imports=False,
)
model = dict(type='EnergySOT')
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='SOTFrameDataset',
        data_root='{{$TRACKING_ROOT:data/tracking}}/test',
        layout='otb',
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='PackDetInputs',
                meta_keys=('img_path', 'video_name', 'frame_id'),
            ),
        ],
    ),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='SOTMetric')
