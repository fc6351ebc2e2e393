"""Builds what the page serves: photos, corpora, extractor, tree, experts, routers, map; one file a stage."""
