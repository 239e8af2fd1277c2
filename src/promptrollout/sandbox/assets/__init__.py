"""The binaries: found, downloaded or built."""
