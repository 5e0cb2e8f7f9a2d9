# KLD-IS: divergence to a Gaussian around the annotation.
_base_ = './faster-rcnn_r18-half_nce-plus_digits.py'
model = dict(
    energy_model=dict(
        loss=dict(_delete_=True, type='KLDISLoss', num_samples=64),
        ascent=dict(step_length=(40e-5, 16e-4)),
    )
)
