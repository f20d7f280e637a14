"""Training: from the data set to a verified export. May import model, never serve."""

import os

# Disable telemetry. Both libraries read these when first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
