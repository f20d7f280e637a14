"""The networks, and the contract between training and serving. Only classifier.py and networks.py import torch."""
