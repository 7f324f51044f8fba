"""`embed` at scale: a study of generated images with broken ones among them, and what it would take on paper."""
