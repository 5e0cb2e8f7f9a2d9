_base_ = './ml-mcmc_dataset1.py'

dataset = 2
method = dict(step_size=0.0125)
