_base_ = '../_base_/regression1d.py'

method = dict(type='MLMCMC', step_size=0.05, num_steps=16, num_samples=1024)
