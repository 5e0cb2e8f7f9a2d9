# NCE: no shift of the positive.
_base_ = './faster-rcnn_r18-half_nce-plus_bccd.py'
model = dict(
    energy_model=dict(
        loss=dict(_delete_=True, type='NCELoss', num_samples=63),
        ascent=dict(step_length=(40e-5, 16e-4)),
    )
)
