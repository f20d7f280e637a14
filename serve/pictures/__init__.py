"""Convert the bytes of a picture to an image in MNIST's form. This package does not depend on HTTP or the model."""
