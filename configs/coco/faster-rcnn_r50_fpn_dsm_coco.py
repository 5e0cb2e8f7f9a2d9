# Denoising score matching, with a smooth activation: a ReLU head would get a
# biased gradient.
_base_ = './faster-rcnn_r50_fpn_nce-plus_coco.py'
model = dict(
    roi_head=dict(
        refiner=dict(
            head=dict(act_cfg=dict(type='SiLU')),
            loss=dict(_delete_=True, type='DSMLoss', sigma=0.075),
            step_length=(2.5e-5, 1e-4),
        )
    )
)
