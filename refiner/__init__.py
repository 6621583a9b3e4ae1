"""The refinement unit of EpipolarPose: a small network that cleans 3D poses of another network."""
