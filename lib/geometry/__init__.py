"""Geometry of cameras, crops and poses: pure batched tensor functions. Frames and units: README.md beside this file."""
