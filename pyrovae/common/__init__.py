"""What every room uses: sentences for bad arguments, progress bars, the version."""
