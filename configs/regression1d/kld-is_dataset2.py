_base_ = './kld-is_dataset1.py'

dataset = 2
