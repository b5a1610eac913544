"""Images to train on: folders, archives, torchvision's data sets and the embedded digits."""
