"""Parallax: 3D human pose from your own cameras. See README.md for where to start reading."""
