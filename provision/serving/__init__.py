"""What a deployment is doing: status of its hosts, its endpoint, questions to the model."""
