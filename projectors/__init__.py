"""Maps between the feature spaces of components, and how they are fitted."""
