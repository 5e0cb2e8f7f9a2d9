_base_ = './sm_dataset1.py'

dataset = 2
