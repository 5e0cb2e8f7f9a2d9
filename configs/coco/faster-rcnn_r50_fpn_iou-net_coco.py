# IoU-Net: regress the IoU of jittered boxes, climb it in pixels.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
model = dict(
    roi_head=dict(
        refiner=dict(
            type='IoUNetRefiner',
            loss=dict(_delete_=True, type='LocalizationConfidenceLoss'),
            num_steps=5,
            step_length=0.5,
        )
    )
)
