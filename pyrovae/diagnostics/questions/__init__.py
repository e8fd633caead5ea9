"""The questions that a comparison asks: a file each, found by being here."""
