"""nitro-nsm."""
