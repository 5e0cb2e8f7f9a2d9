# NCE: no shift of the positive.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
model = dict(
    energy_model=dict(
        loss=dict(_delete_=True, type='NCELoss'),
        ascent=dict(step_length=(40e-5, 16e-4)),
    )
)
