_base_ = '../_base_/regression1d.py'

method = dict(type='DSM', sigma=0.2, num_samples=1024)
