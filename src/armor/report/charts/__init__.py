"""One file a chart: data in, a `Picture` out."""
