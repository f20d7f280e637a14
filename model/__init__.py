"""What the networks are, and what a release of one is. This file, contract.py and cores.py import no torch."""
