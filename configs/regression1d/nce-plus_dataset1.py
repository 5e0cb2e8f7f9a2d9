_base_ = '../_base_/regression1d.py'

method = dict(type='NCEPlus', sigmas=(0.1, 0.8), num_samples=1024, beta=0.025)
