_base_ = './nce_dataset1.py'

dataset = 2
