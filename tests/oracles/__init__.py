"""Slow, obvious float64 transcriptions of the papers, written without reading the library."""
