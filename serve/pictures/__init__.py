"""From the bytes of a picture to an image in MNIST's form. Knows neither HTTP nor the model."""
