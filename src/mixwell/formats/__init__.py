"""What lies on disk, checked before it is used: files of a folder, JSON of a known shape or sealed, named tensors."""
