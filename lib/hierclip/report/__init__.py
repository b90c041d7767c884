"""The report: a page that stands alone, made of what the pipeline left."""
