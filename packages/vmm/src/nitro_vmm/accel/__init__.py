"""Accelerators: what runs the guest's instructions.

Each has a folder, and nothing outside of that folder knows the library or the kernel interface behind it.
"""
