"""How a network becomes a verified model. May import model, never serve."""

import os

# Nothing here phones home: both read these when first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
