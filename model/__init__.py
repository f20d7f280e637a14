"""The networks, and the contract between training and serving. This file, contract.py and cores.py import no torch."""
