"""Slow, literal readings of the equations: plain loops over images, classes and pixels.

They are made from the papers and share no code with the package. Tensors hold the numbers, so autograd works
through them.
"""
