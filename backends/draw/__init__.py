"""Pictures of networks: SVG, and the language of Graphviz."""
