"""What the networks are. Imports torch only."""
