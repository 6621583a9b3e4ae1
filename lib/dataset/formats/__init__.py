"""Layouts on disk by name. Each module has SKELETON, read(root, split, **options) and write(ann, root, split,
image).
"""

FORMATS = {
    "synthetic": "lib.dataset.formats.synthetic",
}
