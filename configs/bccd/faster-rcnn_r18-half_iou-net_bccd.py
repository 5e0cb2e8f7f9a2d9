# IoU-Net: regress the IoU of jittered boxes, climb it in pixels.
_base_ = './faster-rcnn_r18-half_nce-plus_bccd.py'
model = dict(
    roi_head=dict(
        refiner=dict(
            type='IoUNetRefiner',
            loss=dict(
                _delete_=True,
                type='LocalizationConfidenceLoss',
                num_samples=64,
            ),
            num_steps=5,
            step_length=0.5,
        )
    )
)
