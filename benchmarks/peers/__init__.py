"""This encoder beside the other ways to run a CLIP image tower from Python, on the same weights and pixels."""
