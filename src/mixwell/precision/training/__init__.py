"""Training in few bits: how the product of a linear map is taken forward and backward (`_parts.Product`)."""
