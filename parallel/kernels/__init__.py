"""The arithmetic of small batches at the memory's pace.

Decoding multiplies a few rows with every weight, so it is as fast as the weights can be read. Each function here has
one meaning and up to three ways: C++ on a CPU (`native.py`, `*.cpp`), Triton on a GPU (`triton_*.py`), and torch's own
operations, which also serve many rows at once and gradients and are what the others are tested against.
"""
