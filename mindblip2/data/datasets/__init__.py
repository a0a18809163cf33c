"""Data sets: annotation files, image folders, CIFAR-100, questions with answers."""
