_base_ = '../_base_/regression1d.py'

method = dict(type='NCE', sigmas=(0.1, 0.8), num_samples=1024)
