"""What data passes through: batches, stages, lanes and routes. Imports libraries and itself only."""
