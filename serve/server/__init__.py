"""How the service runs: gunicorn's processes, logs, metrics, errors, authentication."""
