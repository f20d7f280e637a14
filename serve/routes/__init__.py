"""The HTTP routes, one blueprint per file. They use HTTP and the predictor, and are independent of gunicorn."""
