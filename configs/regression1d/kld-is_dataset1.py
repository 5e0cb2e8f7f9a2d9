_base_ = '../_base_/regression1d.py'

method = dict(
    type='KLDIS', sigmas=(0.2, 1.6), num_samples=1024, sigma_gt=0.025
)
