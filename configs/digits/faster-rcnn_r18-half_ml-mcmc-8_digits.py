# ML-MCMC-8: likelihood, by Langevin chains of 8 steps.
_base_ = './faster-rcnn_r18-half_nce-plus_digits.py'
model = dict(
    energy_model=dict(
        loss=dict(
            _delete_=True,
            type='MLMCMCLoss',
            num_steps=8,
            step_size=1e-5,
            num_samples=64,
        ),
        ascent=dict(step_length=(2.5e-5, 1e-4)),
    )
)
