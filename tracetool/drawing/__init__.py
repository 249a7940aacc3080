"""Drawing primitives: SVG, PNG heat map, colours; what a chart is made of."""
