"""Pages, charts and tables; the drawing libraries are imported inside the functions."""
