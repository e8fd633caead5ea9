"""What every other package uses: sentences for bad arguments, progress bars, the version."""
