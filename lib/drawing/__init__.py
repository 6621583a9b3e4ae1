"""Canvas work under lib/vis.py, moving skeletons, and the space that cameras share."""
