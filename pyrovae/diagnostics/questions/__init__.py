"""The questions that a comparison asks, one file per question; files in this folder are found automatically."""
