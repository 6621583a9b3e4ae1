"""From an image to feature maps: the ResNet trunk and the deconvolution head."""
