"""The objects: pydantic models from which the CRDs are generated. Knows no other part."""
