_base_ = './nce-plus_dataset1.py'

dataset = 2
