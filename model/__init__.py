"""What the networks are, and what a release of one is. This file and contract.py import no torch."""
