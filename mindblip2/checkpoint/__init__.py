"""Reading and writing of weights and training state."""
