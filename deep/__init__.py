"""Networks, data and training: what the theory is checked on."""
