"""What a run will cost, from configurations alone: no weights, nothing downloaded."""
