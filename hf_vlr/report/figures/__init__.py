"""The plots of a report, one in each file: numbers in, an inline SVG out."""
