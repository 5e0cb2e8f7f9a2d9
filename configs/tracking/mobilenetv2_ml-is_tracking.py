# ML-IS: likelihood, normalised by importance sampling.
# Noise, samples and schedule are those of NCE+.
_base_ = './mobilenetv2_nce-plus_tracking.py'
model = dict(
    energy_model=dict(
        loss=dict(
            _delete_=True,
            type='MLISLoss',
            sigmas=(0.05, 0.15, 0.4),
            num_samples=64,
        ),
    )
)
