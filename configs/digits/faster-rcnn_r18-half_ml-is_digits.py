# ML-IS: likelihood, normalised by importance sampling.
_base_ = './faster-rcnn_r18-half_nce-plus_digits.py'
model = dict(
    roi_head=dict(
        refiner=dict(
            loss=dict(_delete_=True, type='MLISLoss', num_samples=64),
            step_length=(40e-5, 16e-4),
        )
    )
)
