"""From files to batches: sources, packing, the training pipeline."""
