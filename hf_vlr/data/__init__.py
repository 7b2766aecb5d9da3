"""The image-text-label contract: sources of images, class-text corpora, generated data, batches."""
