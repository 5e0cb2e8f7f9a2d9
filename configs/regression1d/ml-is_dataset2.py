_base_ = './ml-is_dataset1.py'

dataset = 2
