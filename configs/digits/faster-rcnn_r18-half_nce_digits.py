# NCE: no shift of the positive.
_base_ = './faster-rcnn_r18-half_nce-plus_digits.py'
model = dict(
    roi_head=dict(
        refiner=dict(
            loss=dict(_delete_=True, type='NCELoss', num_samples=63),
            step_length=(40e-5, 16e-4),
        )
    )
)
