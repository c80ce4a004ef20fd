"""Data sets in few images: labelled images in, images to store and to train on out."""
