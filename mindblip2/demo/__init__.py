"""The embedded data set of handwritten digits, and the training of the embedded language model."""
