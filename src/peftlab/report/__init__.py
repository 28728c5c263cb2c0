"""Records and verdicts to one static HTML file: `contents` is the data, `page` the file. Computes no statistics."""
