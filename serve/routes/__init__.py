"""The HTTP routes, in several blueprints, and the parsing of bodies. The routes also work without gunicorn workers."""
