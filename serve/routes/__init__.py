"""The HTTP routes, one blueprint a file. They know HTTP and the predictor, not gunicorn."""
