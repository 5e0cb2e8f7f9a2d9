# IoU-Net trained together with its detector.
_base_ = './faster-rcnn_r50_fpn_nce-plus_joint_coco.py'
model = dict(
    energy_model=dict(
        loss=dict(_delete_=True, type='LocalizationConfidenceLoss'),
        ascent=dict(
            _delete_=True, type='IoUNetAscent', num_steps=5, step_length=0.5
        ),
    )
)
