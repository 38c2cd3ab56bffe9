"""PrivFedTalk for NVIDIA FLARE: federated, encrypted, differentially private talking-head adapters."""

__version__ = "0.1.0"
