"""What the 1D experiments share, as published."""

dataset = 1
training = dict(
    num_models=20,
    seed=0,
    num_points=2000,
    batch_size=32,
    num_epochs=75,
    lr=1e-3,
    width=10,
    label_noise=0.0,
)
# D_KL on a grid of grid_size x grid_size; the num_best models are summed up.
grid_size = 2048
num_best = 5
