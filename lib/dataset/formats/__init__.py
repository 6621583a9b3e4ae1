"""Layouts on disk by name. Each module has SKELETON, read(root, split, **options) and write(ann, root, split,
image).
"""

FORMATS = {
    "synthetic": "lib.dataset.formats.synthetic",
    "h36m": "lib.dataset.formats.h36m",
    "h36m_raw": "lib.dataset.formats.h36m_raw",
    "h36m_challenge": "lib.dataset.formats.h36m_challenge",
    "machine_lists": "lib.dataset.formats.machine_lists",
    "mpii": "lib.dataset.formats.mpii",
    "coco": "lib.dataset.formats.coco",
    "mpi_inf_3dhp": "lib.dataset.formats.mpi_inf_3dhp",
    "threedpw": "lib.dataset.formats.threedpw",
    "panoptic": "lib.dataset.formats.panoptic",
    "shelf": "lib.dataset.formats.shelf",
    "campus": "lib.dataset.formats.campus",
    "pseudo_labels": "lib.dataset.formats.pseudo_labels",
    "custom": "lib.dataset.formats.custom",
}

# People over time (lib.dataset.tracks): each module has SKELETON, read(root, split, **options) -> Tracks and write(tracks, root, ...).
TRACKS = {"keypoints_npz": "lib.dataset.formats.keypoints_npz"}
