# Score matching. Its authors did not run it on detection: the steps are DSM's.
# It needs second derivatives, hence the smooth activation.
_base_ = './faster-rcnn_r18-half_nce-plus_bccd.py'
model = dict(
    energy_model=dict(
        head=dict(act_cfg=dict(type='SiLU')),
        loss=dict(_delete_=True, type='SMLoss'),
        ascent=dict(step_length=(2.5e-5, 1e-4)),
    )
)
