"""What the networks are. Imports torch only; cores.py not even that."""
