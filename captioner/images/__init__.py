"""Images and captions: data sets, downloads and the images file."""
