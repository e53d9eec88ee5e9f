"""Encoders, and the feature maps that they make of images."""
