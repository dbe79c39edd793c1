"""The exact mode: logits that are the same to the bit at every MP that divides the model evenly.

docs/adr/0011-exact-mode.md
"""
