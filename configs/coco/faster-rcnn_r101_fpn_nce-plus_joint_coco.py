_base_ = './faster-rcnn_r50_fpn_nce-plus_joint_coco.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
