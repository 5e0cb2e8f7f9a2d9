"""Speed of pooling, refinement and training, as ratios of one run."""
