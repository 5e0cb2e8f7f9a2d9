# ML-IS: likelihood, normalised by importance sampling.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
model = dict(
    energy_model=dict(
        loss=dict(_delete_=True, type='MLISLoss'),
        ascent=dict(step_length=(40e-5, 16e-4)),
    )
)
