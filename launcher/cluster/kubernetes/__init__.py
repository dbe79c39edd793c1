"""Kubernetes: manifests, and kubectl."""
