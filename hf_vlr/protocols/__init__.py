"""The papers' protocols: what features are worth without training the towers further."""
