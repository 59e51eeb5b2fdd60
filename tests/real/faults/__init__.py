"""Faults made live with Docker, and healthy programs beside them: what `analyze_container_logs` says of each."""
