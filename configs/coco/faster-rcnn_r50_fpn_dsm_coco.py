# Denoising score matching, with a smooth activation: a ReLU head would get a
# biased gradient.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
model = dict(
    energy_model=dict(
        head=dict(act_cfg=dict(type='SiLU')),
        loss=dict(_delete_=True, type='DSMLoss', sigma=0.075),
        ascent=dict(step_length=(2.5e-5, 1e-4)),
    )
)
