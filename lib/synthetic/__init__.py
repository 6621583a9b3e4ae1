"""A procedural world: people in rooms before calibrated cameras, exact truth and pictures, from nothing but a seed."""
