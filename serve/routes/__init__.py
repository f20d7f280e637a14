"""The HTTP routes, one blueprint per file. They use HTTP and the predictor, and also run without gunicorn."""
