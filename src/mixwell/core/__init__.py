"""What every room stands on: routing and its kernels, methods and their registry, configs, tensors on disk.

Import the module that you need (`from mixwell.core.config import from_dict`); this package imports none, so that
the parts that need torch are loaded only when they are used.
"""
