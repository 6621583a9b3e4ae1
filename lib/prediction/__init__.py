"""What trained networks are used for outside training: keypoints lifted, several cameras, labels for others, saved poses corrected.

`lib.predictor` is the entrance: one class per family of networks.
"""
