_base_ = './dsm_dataset1.py'

dataset = 2
method = dict(sigma=0.075)
