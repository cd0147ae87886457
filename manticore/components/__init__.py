"""A pretrained model seen as embeddings, layers, final norm and head."""
