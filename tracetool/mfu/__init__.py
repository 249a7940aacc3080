"""FLOPs of what ran and of the model, and how they stand against the peak."""
