# RetinaNet small enough to train from scratch on two CPU cores in minutes:
# ResNet-18 at half width, a 64-channel FPN of three levels, two convolutions
# in each branch of its head. Also the base of the other dense detectors.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=3),
    bbox_head=dict(
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        anchor_generator=dict(strides=[8, 16, 32]),
    ),
)
