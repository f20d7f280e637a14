"""Convert the bytes of a picture to an image in MNIST's form. Independent of HTTP and of the model."""
