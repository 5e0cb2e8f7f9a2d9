# Denoising score matching, with a smooth activation: a ReLU head would get a
# biased gradient.
_base_ = './faster-rcnn_r18-half_nce-plus_bccd.py'
model = dict(
    energy_model=dict(
        head=dict(act_cfg=dict(type='SiLU')),
        loss=dict(_delete_=True, type='DSMLoss', sigma=0.075, num_samples=64),
        ascent=dict(step_length=(2.5e-5, 1e-4)),
    )
)
